package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// onSmallDisk puts the deployment's state.dir on a file system of the given
// size and sets state.reserve.
func (d *deployment) onSmallDisk(megabytes int, reserve string) {
	d.Helper()
	if os.Geteuid() != 0 {
		d.Skip("only root may mount a file system")
	}
	disk := filepath.Join(filepath.Dir(d.dir), "disk")
	if err := os.Mkdir(disk, 0o755); err != nil {
		d.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%dm", megabytes)); err != nil {
		d.Skipf("a file system cannot be mounted here: %v", err)
	}
	d.Cleanup(func() {
		if d.process != nil {
			d.kill()
		}
		if err := syscall.Unmount(disk, 0); err != nil {
			d.Error(errors.Join(err, syscall.Unmount(disk, syscall.MNT_DETACH)))
		}
	})
	d.dir = filepath.Join(disk, "state")
	d.setConfig("state", map[string]any{"dir": d.dir, "reserve": reserve})
}

// setConfig replaces a section of the configuration.
func (d *deployment) setConfig(section string, values map[string]any) {
	d.Helper()
	text, err := os.ReadFile(d.config)
	if err != nil {
		d.Fatal(err)
	}
	all := map[string]any{}
	if err := json.Unmarshal(text, &all); err != nil {
		d.Fatal(err)
	}
	all[section] = values
	if text, err = json.Marshal(all); err != nil {
		d.Fatal(err)
	}
	if err := os.WriteFile(d.config, text, 0o600); err != nil {
		d.Fatal(err)
	}
}

// fillDisk fills the small disk until leave bytes are free, and returns the
// file.
func (d *deployment) fillDisk(leave int64) string {
	d.Helper()
	name := filepath.Join(filepath.Dir(d.dir), "ballast")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		d.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(name, &fs); err != nil {
			d.Fatal(err)
		}
		if int64(fs.Bavail)*fs.Bsize < leave+int64(len(block)) {
			return name
		}
		if _, err := f.Write(block); err != nil && !errors.Is(err, syscall.ENOSPC) {
			d.Fatal(err)
		}
	}
}

// askReady returns status and body of the running daemon's /readyz.
func (d *deployment) askReady() (int, string) {
	d.Helper()
	address, err := d.httpAddress()
	if err != nil {
		d.Fatal(err)
	}
	resp, err := http.Get("http://" + address + "/readyz")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		d.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The disk fills up under the running daemon. Changes of subscriptions wait on
// the same connection, and the status says so; campaigns that need none of the
// changes go on; the slot is not acknowledged beyond the stored changes. With
// room again, the daemon continues by itself.
func TestDiskFillsUpAndHasRoomAgain(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.onSmallDisk(160, "64MB")
	d.addSubscriptions(10, 500)
	d.setup(1)
	d.db.Exec(`DO $$ BEGIN EXECUTE 'ALTER DATABASE ' || quote_ident(current_database()) || ' SET wal_sender_timeout = ''2s'''; END $$`)
	d.start()
	d.awaitReady()
	walsender := func() (pid int) {
		d.queryRow(&pid, `SELECT coalesce((SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1), 0)`, d.name)
		return pid
	}
	before := walsender()
	ballast := d.fillDisk(40 << 20)
	envtest.Until(t, patience, func() error {
		if code, body := d.askReady(); code != http.StatusServiceUnavailable || !strings.Contains(body, "disk is almost full") {
			return fmt.Errorf("readyz: %d %s", code, body)
		}
		return nil
	})
	d.produce(0, newCampaign("needs no change", "r1")) // no change waits yet
	envtest.Until(t, patience, func() error { return d.checkRows("needs no change", 250) })

	var committed string
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r2')`)
	d.queryRow(&committed, `SELECT pg_current_wal_lsn()::text`)
	d.produce(0, newCampaign("needs the change", "r2"))
	full := time.Now()
	envtest.Until(t, patience, func() error {
		if status := d.statusText(); !strings.Contains(status, "disk_full") || !strings.Contains(status, "waits for fresh subscriptions") {
			return fmt.Errorf("status:\n%s", status)
		}
		if time.Since(full) < 5*time.Second { // longer than wal_sender_timeout
			return errors.New("not yet long enough")
		}
		return nil
	})
	var early bool
	d.queryRow(&early, `SELECT confirmed_flush_lsn >= $2::pg_lsn FROM pg_replication_slots WHERE slot_name = $1`, d.name, committed)
	if early {
		t.Error("the change is acknowledged and not stored")
	}
	var have int
	if d.queryRow(&have, `SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = 'needs the change'`); have != 0 {
		t.Errorf("%d clients were notified before the change was known", have)
	}
	if pid := walsender(); pid != before {
		t.Errorf("the walsender is %d, was %d: the stream was begun anew", pid, before)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	d.awaitReady()
	d.checkOnce(map[string]string{"needs no change": "r1", "needs the change": "r2"}, patience)
	if log := d.log.tail(1 << 20); strings.Contains(log, "cannot follow the source") || strings.Contains(log, "cannot reach the source") {
		t.Error("the mirror has reconnected")
	}
	d.stop()
}

// The daemon does not repeat a snapshot that does not fit: it deletes the
// incomplete snapshot, drops the slot, and waits for more room than there was.
func TestSnapshotThatDoesNotFitWaitsForRoom(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.onSmallDisk(256, "32MB")
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT md5('c' || n)::uuid::text, 'r' || n % 100 FROM generate_series(1, 800000) n`)
	d.setup(1)
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ballast := d.fillDisk(48 << 20)
	d.start()
	envtest.Until(t, patience, func() error {
		if log := d.log.tail(1 << 20); !strings.Contains(log, "wait until there is room") {
			return errors.New("it does not wait for room")
		}
		if status := d.statusText(); !strings.Contains(status, "source         disk_full") {
			return fmt.Errorf("status:\n%s", status)
		}
		return nil
	})
	var slots int
	if d.queryRow(&slots, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, d.name); slots != 0 {
		t.Error("the slot keeps WAL for a snapshot that has to be taken anew")
	}
	if left, _ := filepath.Glob(filepath.Join(d.dir, "load", "*")); len(left) > 0 {
		t.Errorf("files of the load are still there: %v", left)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	d.awaitReady()
	if n := strings.Count(d.log.tail(1<<20), "taking a snapshot"); n != 2 {
		t.Errorf("%d snapshots were begun, want 2", n)
	}
	d.stop()
}

// Without a reserve, writes fill the disk to the last byte. The process may end
// then, with a failure that names the reason; it never continues with less
// state than before, and runs again once there is room.
func TestDiskFullToTheLastByte(t *testing.T) {
	t.Parallel()
	d := newDeployment(t)
	d.onSmallDisk(96, "0")
	d.addSubscriptions(10, 500)
	d.setup(1)
	d.start()
	d.awaitReady()
	ballast := d.fillDisk(0)
	ended := false
	for n := 0; n < 200 && !ended; n++ {
		d.db.Exec(`UPDATE subscribers_restaurants SET client_id = client_id || $1`, fmt.Sprint(n%10))
		select {
		case <-d.process.Done():
			if d.process.ExitCode() != 1 || !strings.Contains(d.log.tail(16<<10), "no space left on device") {
				t.Errorf("the daemon ended with %v", d.process.Err())
			}
			d.process, ended = nil, true
		default:
		}
	}
	t.Logf("the process ended: %v", ended)
	d.produce(0, newCampaign("c", "r3"))
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if !ended {
		select {
		case <-d.process.Done():
			d.process = nil
		case <-time.After(time.Second):
		}
	}
	if d.process == nil {
		d.start()
	}
	d.awaitReady()
	d.checkOnce(map[string]string{"c": "r3"}, patience)
	if aside := d.listQuarantines(); len(aside) > 0 {
		t.Errorf("a full disk is no damage, and set aside was %v", aside)
	}
	d.stop()
}
