package e2e

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"
)

// listFailpoints lists every failpoint.Hit("…") of the source.
func listFailpoints(t *testing.T) []string {
	t.Helper()
	var names []string
	root := envtest.Root(t)
	for _, dir := range []string{"cdc", "state", "stream"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if name, ok := hitName(n); ok {
					names = append(names, name)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(names)
	if unique := slices.Compact(slices.Clone(names)); len(unique) != len(names) {
		t.Errorf("a failpoint's name is used twice in %v", names)
	}
	return names
}

func hitName(n ast.Node) (string, bool) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return "", false
	}
	fun, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || fun.Sel.Name != "Hit" {
		return "", false
	}
	if pkg, ok := fun.X.(*ast.Ident); !ok || pkg.Name != "failpoint" {
		return "", false
	}
	lit, ok := call.Args[0].(*ast.BasicLit)
	if !ok {
		return "", false
	}
	name, err := strconv.Unquote(lit.Value)
	return name, err == nil
}

// The daemon dies once at each failpoint and is started again; every client is
// notified once. At the failpoints "operate/…" it is an operator's command that dies. A
// failpoint that the workload does not reach fails the test.
func TestDeathAtEveryFailpoint(t *testing.T) {
	envtest.Slow(t) // it starts the daemon ninety times
	t.Parallel()
	binary := filepath.Join(envtest.Dir(t), "dinnerbell-failpoints")
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-tags", "failpoints", "-o", binary, "dinnerbell/cmd/dinnerbell")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	points := listFailpoints(t)
	t.Logf("%d moments", len(points))
	// The subtests mostly wait, so they run side by side.
	const sides = 4
	for side := range sides {
		t.Run(fmt.Sprint(side), func(t *testing.T) {
			t.Parallel()
			d := newDeployment(t)
			d.binary = binary
			d.checkpointEvery("1s")
			d.serveLateSubscribers()
			d.setup(2)
			produced := map[string]string{}
			for n := side; n < len(points); n += sides {
				t.Logf("%s", points[n])
				d.dieAt(points[n], n, produced)
			}
			d.start()
			d.awaitReady()
			d.checkOnce(produced, 2*patience)
			d.stop()
		})
	}
}

// dieAt runs the daemon with work that leads to the failpoint until the daemon
// dies there, then starts it again and lets it finish.
func (d *deployment) dieAt(point string, n int, produced map[string]string) {
	d.Helper()
	if strings.HasPrefix(point, "snapshot/") || strings.HasPrefix(point, "late/rejoin-") { // reached only without state
		if err := os.RemoveAll(d.dir); err != nil {
			d.Fatal(err)
		}
	}
	if strings.HasPrefix(point, "checkpoint/") { // the death is followed by a restore of one made before
		d.start()
		d.awaitReady()
		d.runCommand("checkpoint", "create")
		d.stop()
	}
	restaurant, id := fmt.Sprintf("r%d", n), fmt.Sprintf("c%d", n)
	const audience = 3000 // more than one step
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client ' || c, $1 FROM generate_series(1, $2) c`, restaurant, audience)
	// One client has the campaign from another job already: that leads to the
	// conflict path.
	d.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created, feedback) VALUES ('', $1, '', '', '', 1, 2, 1, 'client 7', 1, 'from another job')`, id)

	if strings.HasPrefix(point, "operate/") {
		d.killCommands(point, id, restaurant, audience, produced)
		return
	}
	parks := strings.HasSuffix(point, "/parked")
	if parks {
		d.env = append(d.env, fmt.Sprintf("DINNERBELL_LIMITS_MAX_AUDIENCE=%d", audience-1))
	}
	d.env = append(d.env, "DINNERBELL_FAILPOINT="+point)
	d.start()
	var asked sync.WaitGroup
	if strings.HasPrefix(point, "rebuild/") { // reached only by a request
		asked.Go(func() { d.rebuildToDeath() })
	}
	defer asked.Wait()
	soon := newCampaign(id+" soon", restaurant)
	soon.Start = time.Now().Unix() + 2
	d.produce(int32(n)%2, newCampaign(id, restaurant), soon)
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', $1)`, restaurant+" late")
	d.produce(int32(n)%2, newCampaign(id+" late", restaurant+" late"))
	subscribed := int64(audience)
	if strings.HasPrefix(point, "late/") && !strings.HasPrefix(point, "late/rejoin-") {
		subscribed += d.subscribeToDeath(restaurant)
	}
	if point == "operators/seen" {
		d.awaitState(id, "finished")
		d.runCommand("pause", id)
	}
	if strings.HasPrefix(point, "replay/") {
		d.awaitReady()
		_ = exec.Command(d.binary, "-c", d.config, "replay", "--from", "earliest").Run() // the daemon dies during the command
	}
	select {
	case <-d.process.Done():
		if exit, ok := errors.AsType[*exec.ExitError](d.process.Err()); !ok || !wasKilled(exit) {
			d.Fatalf("the daemon ended with %v instead of dying at %s", d.process.Err(), point)
		}
		d.process = nil
	case <-time.After(patience):
		d.Fatalf("the daemon never reached %s", point)
	}
	d.env = d.env[:len(d.env)-1]
	before := d.countRebuilds()
	if strings.HasPrefix(point, "checkpoint/") {
		d.restoreNewest()
	}
	produced[id], produced[id+" soon"], produced[id+" late"] = restaurant, restaurant, restaurant+" late"

	d.start()
	if parks {
		d.env = d.env[:len(d.env)-1]
		for _, parked := range []string{id, id + " soon"} {
			d.awaitState(parked, "parked")
			d.runCommand("approve", parked)
		}
	}
	if point == "operators/seen" {
		d.awaitState(id, "paused")
		d.runCommand("resume", id)
	}
	for _, want := range []struct {
		campaign string
		clients  int64
	}{{id, subscribed}, {id + " soon", subscribed}, {id + " late", 1}} {
		envtest.Until(d, patience, func() error { return d.checkRows(want.campaign, want.clients) })
	}
	if n := d.countRebuilds(); n != before && !strings.HasPrefix(point, "snapshot/") && !strings.HasPrefix(point, "late/rejoin-") {
		d.Errorf("after its death at %s the daemon took %d snapshots", point, n-before)
	}
	d.awaitReady() // the daemon may have died after the end of the work; it must handle SIGTERM by now
	d.stop()
}

// awaitState waits until a campaign's row has a state.
func (d *deployment) awaitState(campaign, state string) {
	d.Helper()
	envtest.Until(d, patience, func() error {
		var have string
		d.queryRow(&have, `SELECT coalesce((SELECT state FROM dinnerbell.campaign WHERE adv_campaign_id = $1), '')`, campaign)
		if have != state {
			return fmt.Errorf("campaign %s is %q, want %s", campaign, have, state)
		}
		return nil
	})
}

// killCommands has each of an operator's commands die at the failpoint, beside a running
// daemon. Before the commit nothing has changed, and the command is given again; after it
// the command holds though nobody was told. Whoever subscribes meanwhile is served as
// the campaign's state says.
func (d *deployment) killCommands(point, id, restaurant string, audience int64, produced map[string]string) {
	d.Helper()
	d.env = append(d.env, fmt.Sprintf("DINNERBELL_LIMITS_MAX_AUDIENCE=%d", audience-1))
	d.start()
	d.env = d.env[:len(d.env)-1]
	d.produce(0, newCampaign(id, restaurant))
	late := 0
	for _, c := range []struct{ action, from, to string }{
		{"approve", "parked", "finished"},
		{"pause", "finished", "paused"},
		{"resume", "paused", "finished"},
		{"cancel", "finished", "cancelled"},
	} {
		d.awaitState(id, c.from)
		cmd := exec.CommandContext(d.Context(), d.binary, "-c", d.config, c.action, id)
		cmd.Env = append(os.Environ(), "DINNERBELL_FAILPOINT="+point)
		out, err := cmd.CombinedOutput()
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || !wasKilled(exit) {
			d.Fatalf("%s ended with %v instead of dying at %s: %s", c.action, err, point, out)
		}
		if point != "operate/committed" {
			d.awaitState(id, c.from)
			d.runCommand(c.action, id)
		}
		d.awaitState(id, c.to)
		if c.to == "finished" {
			late++
			d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, $2)`, fmt.Sprint("late ", late), restaurant)
			envtest.Until(d, patience, func() error { return d.checkRows(id, audience+int64(late)) })
		}
	}
	produced[id] = restaurant
	d.awaitReady()
	d.stop()
}

// subscribeToDeath has clients subscribe until the daemon dies, and returns their number.
func (d *deployment) subscribeToDeath(restaurant string) (n int64) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-d.process.Done():
			return n
		case <-time.After(patience):
			return n
		case <-tick.C:
		}
		n++
		d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ($1, $2)`, fmt.Sprint("late ", n), restaurant)
	}
}

// rebuildToDeath requests a rebuild, during which the daemon dies.
func (d *deployment) rebuildToDeath() {
	d.awaitReady()
	out, err := exec.CommandContext(d.Context(), d.binary, "-c", d.config, "rebuild").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "the daemon ended in the middle of it") {
		d.Errorf("rebuild: %v: %s", err, out)
	}
}

func wasKilled(exit *exec.ExitError) bool {
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}
