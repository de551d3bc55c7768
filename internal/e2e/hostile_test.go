package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/envtest/hostile"
	"dinnerbell/internal/testenv/envtest/rawbatch"
)

// What the process may take, whoever answers it.
const (
	mostMemory  = 300 << 20
	mostToEnd   = 3 * time.Second
	mostCommand = time.Minute
)

// stranger is what may stand where a server is expected.
type stranger struct {
	serve    func(net.Conn)
	says     string // a part of what the log says of it
	commands bool   // the commands are tried too
}

// hostilePostgres are what may stand at source.url.
var hostilePostgres = map[string]stranger{
	"silence":         {hostile.Silence, "timeout", true},
	"garbage":         {hostile.Answer(hostile.Garbage(100_000)), "none of Postgres", false},
	"half an answer":  {hostile.Close([]byte{0, 0, 0}), "closed the connection during the login, in the middle of its answer", false},
	"HTTP":            {hostile.Answer([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n400 Bad Request")), "none of Postgres", false},
	"a gigabyte":      {hostile.Endless(append(hostile.Message('R', "\x00\x00\x00\x00"), hostile.Claim('S', 1<<30-100)...), hostile.Zeros), "claims a message", false},
	"notices":         {hostile.Endless(nil, hostile.Notices), "has not let us in", true},
	"parameters":      {hostile.Endless(hostile.Message('R', "\x00\x00\x00\x00"), hostile.Parameters), "has not let us in", false},
	"work":            {hostile.Scram(10_000_000), "iterations of SCRAM", false},
	"TLS and silence": {hostile.Answer([]byte("S")), "timeout", false},
	"then silence":    {hostile.Answer(hostile.LetIn), "timeout", true},
	"a large row":     {hostile.Endless(append(bytes.Clone(hostile.LetIn), hostile.Claim('D', 900<<20)...), hostile.Zeros), "invalid body length", false},
	"rows":            {hostile.Endless(hostile.LetIn, hostile.Rows), "", true},
}

// Whoever answers at source.url, the daemon's memory is bounded, SIGTERM ends the daemon,
// and the log names the address and the key, once.
func TestHostilePostgres(t *testing.T) {
	t.Parallel()
	for name, s := range hostilePostgres {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := newDeployment(t)
			peer := hostile.Start(t, s.serve)
			url := "postgres://u:x@" + peer.Address() + "/de?connect_timeout=1"
			if name != "TLS and silence" {
				url += "&sslmode=disable"
			}
			d.setConfig("source", map[string]any{"url": url})
			d.checkStranger(peer.Address(), "source.url", s, peer.Accepted)
		})
	}
}

// hostileKafka are what may stand at kafka.brokers.
var hostileKafka = map[string]stranger{
	"silence":        {hostile.Silence, "timeout", false},
	"garbage":        {hostile.Answer(hostile.Garbage(100_000)), "invalid large response size", false},
	"half an answer": {hostile.Close([]byte{0, 0, 0}), "EOF", false},
	"HTTP":           {hostile.Answer([]byte("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\n400 Bad Request")), "is your broker port correct", false},
	"99 MB":          {hostile.Endless([]byte{6, 0x30, 0, 0}, hostile.Zeros), "before it has accepted us", false},
	"zeros":          {hostile.Endless(nil, hostile.Zeros), "not contain enough data", false},
}

// As with Postgres, for whoever answers at kafka.brokers.
func TestHostileKafka(t *testing.T) {
	t.Parallel()
	for name, s := range hostileKafka {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peer := hostile.Start(t, s.serve)
			newDeployment(t).checkBroker(peer.Address(), s, peer.Accepted)
		})
	}
	for name, c := range map[string]struct {
		body []byte
		says string
	}{
		"many brokers": {hostile.ManyBrokers(16 << 20), "a request for no records"},
		"a megabyte":   {hostile.ManyBrokers(1000 << 10), "not contain enough data"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newDeployment(t).checkBroker(hostile.Broker(t, kmsg.Metadata, c.body)[0], stranger{nil, c.says, true}, nil)
		})
	}
}

func (d *deployment) checkBroker(address string, s stranger, accepted func() int64) {
	d.Helper()
	if s.commands {
		d.setup(1) // else the commands fail before they ask the broker
	} else {
		d.db.Exec(`CREATE PUBLICATION dinnerbell FOR TABLE subscribers_restaurants`)
	}
	d.setConfig("kafka", map[string]any{"brokers": []string{address}})
	d.checkStranger(address, "kafka.brokers", s, accepted)
}

// checkStranger runs the daemon, and the commands, with a stranger at an address that key
// holds.
func (d *deployment) checkStranger(address, key string, s stranger, accepted func() int64) {
	d.Helper()
	d.start()
	envtest.Until(d, patience, func() error {
		text := d.log.tail(64 << 10)
		for _, want := range []string{address, s.says, key} {
			if !strings.Contains(text, want) {
				return fmt.Errorf("no %q in the log: %s", want, text)
			}
		}
		if accepted != nil && accepted() < 4 {
			return fmt.Errorf("%d connections", accepted())
		}
		return nil
	})
	if memory := d.peakMemory(); memory > mostMemory {
		d.Errorf("the daemon took %d MB", memory>>20)
	}
	for _, line := range []string{"cannot reach the source", "cannot begin yet"} {
		if n := strings.Count(d.log.tail(64<<10), line); n > 2 { // the second one after a minute
			d.Errorf("the log says %d times %q", n, line)
		}
	}
	began := time.Now()
	d.stop()
	if took := time.Since(began); took > mostToEnd {
		d.Errorf("the daemon ended %s after SIGTERM", took)
	}
	if s.commands {
		for _, args := range [][]string{{"doctor"}, {"setup"}, {"status"}, {"audit"}, {"explain", "c", "x"}} {
			d.checkCommand(args...)
		}
	}
}

// checkCommand runs a command that must fail, in bounded time and memory.
func (d *deployment) checkCommand(args ...string) {
	d.Helper()
	var out bytes.Buffer
	cmd := exec.Command(d.binary, append([]string{"-c", d.config}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	child, err := testenv.StartChild(cmd, "", syscall.SIGKILL)
	if err != nil {
		d.Fatal(err)
	}
	peak := int64(0)
	for end := time.After(mostCommand); ; {
		select {
		case <-child.Done():
			if child.ExitCode() == 0 {
				d.Errorf("%v: exit 0: %s", args, out.String())
			}
			if peak > mostMemory {
				d.Errorf("%v took %d MB", args, peak>>20)
			}
			d.Logf("%v: %d MB, %s", args, peak>>20, time.Since(began).Round(time.Millisecond))
			return
		case <-time.After(20 * time.Millisecond):
			if now, err := readHighWater(child.PID()); err == nil { // it may have ended
				peak = max(peak, now)
			}
		case <-end:
			d.Errorf("%v takes longer than %s", args, mostCommand)
			if err := child.Kill(); err != nil {
				d.Error(err)
			}
			return
		}
	}
}

// Batches that inflate to gigabytes, and many large campaigns, cost the process no memory.
func TestBombsCostNoMemory(t *testing.T) {
	t.Parallel()
	if envtest.RealKafka() {
		t.Skip("Apache Kafka refuses most of these batches")
	}
	d := newDeployment(t)
	d.addSubscriptions(1, 10)
	d.setup(1)
	d.start()
	d.awaitReady()
	const large, bombs = 40, 5
	want := map[string]string{"behind": "r0"}
	for i := range large {
		c := newCampaign(fmt.Sprintf("large %d", i), "r0")
		c.Content = strings.Repeat("x", 900_000)
		d.produce(0, c)
		want[c.ID] = "r0"
	}
	for _, codec := range []rawbatch.Codec{rawbatch.Gzip, rawbatch.LZ4, rawbatch.Snappy, rawbatch.Zstd} {
		sizes := map[rawbatch.Codec][]int{rawbatch.Gzip: {150 << 20}, rawbatch.LZ4: {60 << 20}, rawbatch.Snappy: {10 << 20}, rawbatch.Zstd: {200 << 20, 200 << 20}}[codec]
		rawbatch.Produce(t, d.campaigns, d.topicName("campaigns"), codec, int32(len(sizes)), rawbatch.Bomb(t, codec, sizes...))
	}
	d.produce(0, newCampaign("behind", "r0"))
	d.checkOnce(want, patience)
	envtest.Until(t, patience, func() error {
		if n := len(d.kafka.ReadAll(d.topicName("dead"))); n < bombs {
			return fmt.Errorf("%d dead letters of %d bombs", n, bombs)
		}
		return nil
	})
	if memory := d.peakMemory(); memory > mostMemory {
		t.Errorf("the daemon took %d MB", memory>>20)
	} else {
		t.Logf("%d MB", memory>>20)
	}
	d.stop()
}
