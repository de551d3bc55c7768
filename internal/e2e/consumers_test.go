package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The program of docs/reading-notifications.md in Go, built with this module's franz-go.
func TestGoConsumerReadsNotifications(t *testing.T) {
	t.Parallel()
	dir := envtest.Dir(t)
	source, program := writeExample(t, dir, "go", "main.go"), filepath.Join(dir, "push")
	build := exec.Command("go", "build", "-o", program, source)
	build.Dir = envtest.Root(t)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkConsumer(t, program)
}

// The program in Java, with the kafka-clients that the test's broker has.
func TestJavaConsumerReadsNotifications(t *testing.T) {
	t.Parallel()
	if !envtest.RealKafka() {
		t.Skip("needs Apache Kafka's jars: make test-kafka")
	}
	if _, err := exec.LookPath("javac"); err != nil {
		t.Fatal("javac is missing (Debian: apt-get install openjdk-17-jdk-headless)")
	}
	libs, err := filepath.Glob(filepath.Join(envtest.Root(t), ".cache", "kafka", "libs-*"))
	if err != nil || len(libs) == 0 {
		t.Fatalf("no jars in .cache/kafka: %v (scripts/kafka.sh install)", err)
	}
	dir := envtest.Dir(t)
	classes := filepath.Join(libs[0], "*") + ":" + dir
	compile := exec.Command("javac", "-cp", classes, "-d", dir, writeExample(t, dir, "java", "PushService.java"))
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	checkConsumer(t, "java", "-cp", classes, "PushService")
}

// confluentKafka is the tested version of the Python library.
const confluentKafka = "confluent-kafka==2.6.1"

// The program in Python, in an environment of its own.
func TestPythonConsumerReadsNotifications(t *testing.T) {
	t.Parallel()
	if !envtest.RealKafka() {
		t.Skip("fetches a library: make test-kafka")
	}
	python, err := confluentPython(t)
	if err != nil {
		t.Fatal(err)
	}
	checkConsumer(t, python, writeExample(t, envtest.Dir(t), "python", "push.py"))
}

// confluentInstall lets one test at a time install the library.
var confluentInstall sync.Mutex

// confluentPython returns the path of a Python that has confluent-kafka, in an environment
// of its own in .cache, which it makes on first use.
func confluentPython(t *testing.T) (python string, err error) {
	t.Helper()
	confluentInstall.Lock()
	defer confluentInstall.Unlock()
	dir := filepath.Join(envtest.Root(t), ".cache", "python-"+strings.ReplaceAll(confluentKafka, "==", "-"))
	python = filepath.Join(dir, "bin", "python")
	if exec.Command(python, "-c", "import confluent_kafka").Run() == nil {
		return python, nil
	}
	for _, args := range [][]string{{"python3", "-m", "venv", dir}, {python, "-m", "pip", "install", "-q", "--disable-pip-version-check", confluentKafka}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%v: %w\n%s", args, err, out)
		}
	}
	return python, nil
}

// writeExample writes the one block of a language of the page into a file.
func writeExample(t *testing.T, dir, lang, name string) (path string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(envtest.Root(t), "docs", "reading-notifications.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := slices.DeleteFunc(readBlocks(string(text)), func(b block) bool { return b.lang != lang })
	if len(blocks) != 1 {
		t.Fatalf("%d blocks of %s", len(blocks), lang)
	}
	path = filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(blocks[0].text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkConsumer runs a consumer on the notifications that a daemon has sent, and on
// records of an aborted transaction. It pushes each notification that is still of use
// once, and after a restart none of them again.
func checkConsumer(t *testing.T, command ...string) {
	t.Helper()
	d := newDeployment(t)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client:' || n, 'r' FROM generate_series(1, 20) n`)
	d.setup(1)
	topic := d.topicName("notifications")
	d.start()
	d.awaitReady()
	d.produce(0, newCampaign("lunch", "r"))
	d.checkOnce(map[string]string{"lunch": "r"}, patience)
	abortRecords(d, topic)
	over := newCampaign("over", "r")
	over.End = time.Now().Add(-time.Second).Unix()
	client := d.kafka.Client()
	if err := client.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte("over:c"), Value: over.JSON()}).FirstErr(); err != nil {
		t.Fatal(err)
	}

	command = append(command, strings.Join(d.kafka.Brokers, ","), topic, d.name+"-push")
	first := runConsumer(t, command, 20)
	want := make([]string, 0, 20)
	for n := range 20 {
		want = append(want, fmt.Sprintf("push lunch:client%%3A%d content of lunch", n+1))
	}
	slices.Sort(first)
	slices.Sort(want)
	if !slices.Equal(first, want) {
		t.Errorf("%v printed\n%s\nwant\n%s", command, strings.Join(first, "\n"), strings.Join(want, "\n"))
	}
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('last', 'other')`)
	d.produce(0, newCampaign("dinner", "other"))
	if again := runConsumer(t, command, 1); again[0] != "push dinner:last content of dinner" {
		t.Errorf("after a restart %v printed %q", command, again)
	}
	d.stop()
}

// abortRecords leaves records in a topic that no read_committed consumer sees.
func abortRecords(d *deployment, topic string) {
	d.Helper()
	producer := d.kafka.Client(kgo.TransactionalID(d.name + "-aborted"))
	if err := producer.BeginTransaction(); err != nil {
		d.Fatal(err)
	}
	c := newCampaign("aborted", "r")
	err := producer.ProduceSync(d.Context(), &kgo.Record{Topic: topic, Key: []byte("aborted:c"), Value: c.JSON()}).FirstErr()
	if err = errors.Join(err, producer.EndTransaction(d.Context(), kgo.TryAbort)); err != nil {
		d.Fatal(err)
	}
}

// runConsumer runs a program until it has printed n lines and its group has committed
// them, and ends it by SIGTERM.
func runConsumer(t *testing.T, command []string, n int) []string {
	t.Helper()
	out := &logBuffer{}
	cmd := exec.Command(command[0], command[1:]...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		late := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil && stderr.Len() > 0 {
			t.Logf("%v: %s", err, stderr.String())
		}
	}()
	var lines []string
	envtest.Until(t, patience, func() error {
		lines = strings.Split(strings.TrimSpace(out.tail(1<<20)), "\n")
		if len(lines) < n || lines[0] == "" {
			return fmt.Errorf("%d of %d lines", len(lines), n)
		}
		return nil
	})
	awaitCommitted(t, command[len(command)-3], command[len(command)-2], command[len(command)-1])
	return strings.Split(strings.TrimSpace(out.tail(1<<20)), "\n")
}

// awaitCommitted waits until a group has committed the end of a topic.
func awaitCommitted(t *testing.T, brokers, topic, group string) {
	t.Helper()
	adm := kadm.NewClient(envtest.KafkaAt(t, strings.Split(brokers, ",")...).Client())
	envtest.Until(t, patience, func() error {
		ends, err := adm.ListEndOffsets(t.Context(), topic)
		if err != nil {
			return err
		}
		committed, err := adm.FetchOffsetsForTopics(t.Context(), group, topic)
		if err != nil {
			return err
		}
		var missing error
		ends.Each(func(end kadm.ListedOffset) {
			// A marker may be the last offset: no record has it, and clients differ.
			if at, ok := committed.Lookup(topic, end.Partition); end.Offset > 0 && (!ok || at.At < end.Offset-1) {
				missing = fmt.Errorf("partition %d: %d of %d", end.Partition, at.At, end.Offset)
			}
		})
		return missing
	})
}
