package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/internal/testenv/workload"
)

func TestMain(m *testing.M) { envtest.Main(m) }

// patience bounds how long a test waits for an expected event.
const patience = envtest.Patience

// deployment is a database, topics, a configuration and the daemon's process.
type deployment struct {
	*testing.T
	db        *envtest.DB
	kafka     *envtest.Cluster
	name      string // prefix of the topics, slot and group
	config    string // path
	dir       string // state.dir
	binary    string
	env       []string // of the daemon; nil: the test's
	traced    bool     // its notifications have a header
	process   *testenv.Child
	log       *logBuffer
	campaigns *kgo.Client
}

func newDeployment(t *testing.T) *deployment {
	t.Helper()
	return newDeploymentOn(t, envtest.Database(t))
}

func newDeploymentOn(t *testing.T, db *envtest.DB) *deployment {
	t.Helper()
	return newDeploymentAt(t, db, envtest.Kafka(t))
}

func newDeploymentAt(t *testing.T, db *envtest.DB, kafka *envtest.Cluster) *deployment {
	t.Helper()
	d := &deployment{T: t, db: db, kafka: kafka, name: envtest.Name("e2e"), binary: envtest.Binary(t), log: &logBuffer{}}
	root := envtest.Dir(t)
	d.config, d.dir = filepath.Join(root, "dinnerbell.yaml"), filepath.Join(root, "state")
	text, err := json.Marshal(map[string]any{ // JSON is YAML
		"source": map[string]any{"url": d.db.URL, "slot": d.name},
		"kafka": map[string]any{
			"brokers": d.kafka.Brokers, "campaigns": d.topicName("campaigns"), "notifications": d.topicName("notifications"),
			"dead_letters": d.topicName("dead"), "progress": d.topicName("progress"), "group": d.name,
		},
		"state": map[string]any{"dir": d.dir},
		"http":  map[string]any{"listen": "127.0.0.1:0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	d.campaigns = d.kafka.Client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	t.Cleanup(func() {
		if d.process != nil {
			d.kill()
		}
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", d.log.tail(16<<10))
		}
	})
	return d
}

func (d *deployment) topicName(base string) string { return d.name + "." + base }

// runCommand runs one dinnerbell command and returns its standard output.
func (d *deployment) runCommand(args ...string) string {
	d.Helper()
	cmd := exec.CommandContext(d.Context(), d.binary, append([]string{"-c", d.config}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		d.Fatalf("dinnerbell %v: %v: %s%s", args, err, out, stderr.String())
	}
	return string(out)
}

// statusText returns the output of `dinnerbell status`, whatever the exit code
// is.
func (d *deployment) statusText(args ...string) string {
	d.Helper()
	out, err := exec.CommandContext(d.Context(), d.binary, append([]string{"-c", d.config, "status"}, args...)...).Output()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		d.Fatalf("dinnerbell status: %v", err)
	}
	return string(out)
}

// setup creates the campaigns topic with a number of partitions, then runs
// `dinnerbell setup`.
func (d *deployment) setup(partitions int) {
	d.Helper()
	d.kafka.TopicNamed(d.topicName("campaigns"), int32(partitions), nil)
	d.kafka.DeleteAfter(d.topicName("notifications"), d.topicName("dead"), d.topicName("progress"))
	d.runCommand("setup")
}

// start runs the daemon.
func (d *deployment) start() {
	d.Helper()
	d.startAs(exec.Command(d.binary, "-c", d.config, "run"))
}

// startAs runs the daemon by another command line, which must end with the
// daemon.
func (d *deployment) startAs(cmd *exec.Cmd) {
	d.Helper()
	cmd.Stderr, cmd.Env = d.log, d.env
	child, err := testenv.StartChild(cmd, "", syscall.SIGKILL)
	if err != nil {
		d.Fatal(err)
	}
	d.process = child
}

// kill ends the daemon by SIGKILL, as a crash does.
func (d *deployment) kill() {
	d.Helper()
	if err := d.process.Kill(); err != nil {
		d.Error(err)
	}
	d.process = nil
}

// stop ends the daemon by SIGTERM; it must drain and exit 0.
func (d *deployment) stop() {
	d.Helper()
	if err := d.process.Signal(syscall.SIGTERM); err != nil {
		d.Fatal(err)
	}
	if <-d.process.Done(); d.process.Err() != nil {
		d.Errorf("the daemon ended with %v after SIGTERM", d.process.Err())
	}
	d.process = nil
}

// awaitReady waits until /readyz of the started daemon answers 200.
func (d *deployment) awaitReady() {
	d.Helper()
	d.awaitReadyWithin(patience)
}

func (d *deployment) awaitReadyWithin(patience time.Duration) {
	d.Helper()
	envtest.Until(d, patience, func() error {
		address, err := d.httpAddress()
		if err != nil {
			return err
		}
		resp, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", body)
		}
		return nil
	})
}

var httpField = regexp.MustCompile(`\bhttp=(\S+)`)

// httpAddress finds the newest process's HTTP address in the log.
func (d *deployment) httpAddress() (string, error) {
	all := httpField.FindAllStringSubmatch(d.log.tail(1<<20), -1)
	if len(all) == 0 {
		return "", fmt.Errorf("the daemon has not said where it listens")
	}
	return all[len(all)-1][1], nil
}

// produce sends campaigns to one partition, in one batch.
func (d *deployment) produce(partition int32, campaigns ...workload.Campaign) {
	d.Helper()
	if err := d.tryProduce(d.Context(), partition, campaigns...); err != nil {
		d.Fatal(err)
	}
}

// tryProduce is produce for a broker that may be restarting. After an error the campaigns
// may be in the topic.
func (d *deployment) tryProduce(ctx context.Context, partition int32, campaigns ...workload.Campaign) error {
	records := make([]*kgo.Record, 0, len(campaigns))
	for _, c := range campaigns {
		records = append(records, &kgo.Record{Topic: d.topicName("campaigns"), Partition: partition, Value: c.JSON()})
	}
	return d.campaigns.ProduceSync(ctx, records...).FirstErr()
}

// newCampaign returns a campaign that is valid now and for an hour.
func newCampaign(id, restaurant string) workload.Campaign {
	c := workload.NewCampaign(id, restaurant, time.Now().Add(-10*time.Second), time.Hour)
	c.Content, c.Owner, c.Contact = "content of "+id, "owner", "owner@example.com"
	return c
}

// checkOnce waits until both sinks hold the expected number of notifications.
// Then it compares them with a join in SQL, so that none is missing and none is
// there twice, and each record with its row, byte by byte.
func (d *deployment) checkOnce(campaigns map[string]string, patience time.Duration) {
	d.Helper()
	ids, restaurants := make([]string, 0, len(campaigns)), make([]string, 0, len(campaigns))
	for id, restaurant := range campaigns {
		ids, restaurants = append(ids, id), append(restaurants, restaurant)
	}
	var want int64
	join := `FROM unnest($1::text[], $2::text[]) AS c(id, restaurant) JOIN subscribers_restaurants s ON s.restaurant_id = c.restaurant`
	d.queryRow(&want, `SELECT count(DISTINCT (c.id, s.client_id)) `+join, ids, restaurants)
	envtest.Until(d, patience, func() error {
		var have int64
		d.queryRow(&have, `SELECT count(*) FROM subscribers_feedback`)
		if have != want {
			return fmt.Errorf("%d of %d rows", have, want)
		}
		return nil
	})
	var missing int64
	d.queryRow(&missing, `SELECT count(*) FROM (SELECT c.id, s.client_id `+join+` EXCEPT SELECT adv_campaign_id, client_id FROM subscribers_feedback) AS m`, ids, restaurants)
	if missing != 0 {
		d.Errorf("%d notifications are missing in the table and as many are too much", missing)
	}
	d.compareSinks(patience)
}

func (d *deployment) queryRow(to any, sql string, args ...any) {
	d.Helper()
	if err := d.db.Pool.QueryRow(d.Context(), sql, args...).Scan(to); err != nil {
		d.Fatal(err)
	}
}

// compareSinks waits until the topic holds as many records as the table holds
// rows, and compares them one by one.
func (d *deployment) compareSinks(patience time.Duration) {
	d.Helper()
	rows := d.renderRows()
	var records []*kgo.Record
	envtest.Until(d, patience, func() error {
		if records = d.kafka.ReadAll(d.topicName("notifications")); len(records) < len(rows) {
			return fmt.Errorf("%d of %d records", len(records), len(rows))
		}
		return nil
	})
	seen := make(map[string]bool, len(records))
	for _, r := range records {
		key := string(r.Key)
		switch row, ok := rows[key]; {
		case seen[key]:
			d.Fatalf("record %s is there twice", key)
		case !ok:
			d.Fatalf("record %s has no row", key)
		case len(r.Headers) > 0 && !d.traced:
			d.Fatalf("record %s has headers: %v", key, r.Headers)
		case row != string(r.Value):
			d.Fatalf("record %s is\n%s, its row\n%s", key, r.Value, row)
		}
		seen[key] = true
	}
	if len(records) != len(rows) {
		d.Errorf("%d records, %d rows", len(records), len(rows))
	}
}

// renderRows renders every feedback row of the daemon's as the record that must
// exist beside it; rows with a feedback text belong to other jobs.
func (d *deployment) renderRows() map[string]string {
	d.Helper()
	rows, err := d.db.Pool.Query(d.Context(), `SELECT restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, client_id, datetime_created, trigger_datetime_created FROM subscribers_feedback WHERE feedback IS NULL`)
	if err != nil {
		d.Fatal(err)
	}
	out := map[string]string{}
	var r workload.Notification
	_, err = pgx.ForEachRow(rows, []any{&r.Restaurant, &r.Campaign, &r.Content, &r.Owner, &r.Contact, &r.Start, &r.End, &r.Client, &r.Created, &r.Trigger}, func() error {
		b, err := json.Marshal(r)
		out[escapeKey(r.Campaign)+":"+escapeKey(r.Client)] = string(b)
		return err
	})
	if err != nil {
		d.Fatal(err)
	}
	return out
}

func escapeKey(id string) string { return strings.NewReplacer("%", "%25", ":", "%3A").Replace(id) }

// logBuffer collects the log of the daemon's processes.
type logBuffer struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = append(b.buf, p...)
	return len(p), nil
}

func (b *logBuffer) tail(n int) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.buf[max(0, len(b.buf)-n):])
}

func (b *logBuffer) clear() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = nil
}
