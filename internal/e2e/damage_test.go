package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// Blocks of the store's tables are damaged under the running daemon while
// campaigns arrive. The daemon moves the store aside, takes a new snapshot and
// continues in the same process while HTTP keeps answering. Every subscriber is
// notified once.
func TestStoreDamagedUnderTheRunningDaemon(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.addSubscriptions(40, 8000)
	d.setup(3)
	d.start()
	d.awaitReady()
	pid := d.process.PID()
	address, err := d.httpAddress()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var alive sync.WaitGroup
	alive.Go(func() { d.stayAlive(ctx, address) })
	d.underLoad(1, func(int) {
		d.awaitReady()
		d.pauseRandom(time.Second)
		d.damageFile()
		// No query has read the row index since the snapshot; these updates
		// read it.
		d.db.Exec(`UPDATE subscribers_restaurants SET client_id = client_id WHERE id % 100 = 0`)
		envtest.Until(t, patience, func() error {
			if got := d.readMetric(address, "dinnerbell_state_quarantines_total"); got != "1" {
				return fmt.Errorf("%s stores set aside", got)
			}
			return nil
		})
	})
	cancel()
	alive.Wait()
	if d.process.PID() != pid {
		t.Error("the daemon was started again")
	}
	aside := d.listQuarantines()
	if len(aside) != 1 {
		t.Fatalf("set aside: %v", aside)
	}
	if status, log := d.statusText(), d.log.tail(1<<20); !strings.Contains(status, aside[0]) || !strings.Contains(log, "moved_to="+aside[0]) {
		t.Errorf("the folder %s is not named in the status\n%s\nor not in the log", aside[0], status)
	}
	d.stop()
}

// damageFile changes a byte in every few hundred of the store's tables on disk.
// Blocks in the daemon's memory are not affected.
func (d *deployment) damageFile() {
	d.Helper()
	tables, err := filepath.Glob(filepath.Join(d.dir, "store", "*.sst"))
	if err != nil || len(tables) == 0 {
		d.Fatalf("no tables: %v", err)
	}
	for _, name := range tables {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			continue // compacted away meanwhile
		}
		info, err := f.Stat()
		if err != nil {
			d.Fatal(err)
		}
		b := make([]byte, 1)
		for at := int64(100); at < info.Size(); at += 400 {
			if _, err := f.ReadAt(b, at); err != nil {
				d.Fatal(err)
			}
			b[0] ^= 0x10
			if _, err := f.WriteAt(b, at); err != nil {
				d.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			d.Fatal(err)
		}
	}
}

func (d *deployment) listQuarantines() []string {
	d.Helper()
	names, err := filepath.Glob(filepath.Join(d.dir, "quarantine-*"))
	if err != nil {
		d.Fatal(err)
	}
	return names
}

// stayAlive asks for the process's health until ctx ends; every answer must be
// good.
func (d *deployment) stayAlive(ctx context.Context, address string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		resp, err := http.Get("http://" + address + "/healthz")
		if err != nil {
			d.Errorf("healthz: %v", err)
			return
		}
		_ = resp.Body.Close()
	}
}

// readMetric returns the value of a metric without labels, "" if the metric is
// missing.
func (d *deployment) readMetric(address, name string) string {
	d.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		d.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		d.Fatal(err)
	}
	if m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindSubmatch(body); m != nil {
		return string(m[1])
	}
	return ""
}
