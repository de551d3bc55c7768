package e2e

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"dinnerbell/internal/testenv/envtest"

	"github.com/twmb/franz-go/pkg/kgo"
)

// missingRow is a row of the table of missing rights in docs/security.md.
type missingRow struct{ command, role, right, says string }

// Each right of Postgres that docs/security.md and scripts/role.sql give to a role is
// needed by one of its commands. A command that lacks a right names the statement that
// grants it, and works after that statement.
//
//nolint:tparallel // its parts run one after the other, since they share the role
func TestSecureGrants(t *testing.T) {
	t.Parallel()
	envtest.Secure(t)
	g := newGrantsTest(t)
	t.Run("commands", func(t *testing.T) {
		for _, c := range []struct{ role, command string }{
			{"dinnerbell_read", "audit"}, {"dinnerbell_read", "campaigns"}, {"dinnerbell_read", "explain"}, {"dinnerbell_read", "dead-letters list"},
			{"dinnerbell_operate", "campaigns"}, {"dinnerbell_operate", "cancel"},
			{"dinnerbell", "resolve"},
		} {
			g.checkCommand(t, c.role, c.command)
		}
	})
	t.Run("run", g.checkRun)
	rows := g.rows // the table has no rows of a running daemon's commands, which FULL=1 alone runs
	t.Run("running", func(t *testing.T) {
		if os.Getenv("FULL") != "1" {
			t.Skip("a replay waits for a minute where a lane stops; run by `make test-secure FULL=1`")
		}
		for _, command := range []string{"replay", "preview"} {
			g.checkCommand(t, "dinnerbell", command)
		}
	})
	g.rows = rows
	t.Run("setup", g.checkSetup)
	if t.Failed() {
		return
	}
	for _, r := range documentedGrants(t) {
		everybodys := slices.ContainsFunc(everybodysGrants, func(e documentedGrant) bool { return e.object == r.object })
		if !everybodys && !slices.ContainsFunc(g.rows, func(row missingRow) bool { return row.role == r.role && row.right == r.text() }) {
			t.Errorf("%s has %s, which none of its commands needs", r.role, r.text())
		}
	}
	compareMissingTable(t, "Postgres", g.rows)
}

// grantsTest is a deployment with delivered campaigns, and the rows that its tests found.
type grantsTest struct {
	*deployment

	roles map[string]*grantedRole
	held  int // campaigns that cancel may end
	rows  []missingRow
}

// scheduledCampaigns is how many campaigns cancel may end.
const scheduledCampaigns = 20

// newGrantsTest delivers a campaign, accepts others whose start lies ahead, and refuses a
// message.
func newGrantsTest(t *testing.T) *grantsTest {
	t.Helper()
	g := &grantsTest{deployment: newDeployment(t), roles: map[string]*grantedRole{}}
	g.addSubscriptions(2, 3)
	g.setup(1)
	for _, role := range []string{"dinnerbell", "dinnerbell_read", "dinnerbell_operate"} {
		g.roles[role] = newGrantedRole(t, g.db, role)
	}
	g.env = g.roles["dinnerbell"].as(t)
	g.start()
	g.awaitReady()
	g.produce(0, newCampaign("delivered", "r0"))
	for n := range scheduledCampaigns {
		g.produce(0, scheduled(fmt.Sprintf("held-%d", n), "r0"))
	}
	if err := g.campaigns.ProduceSync(t.Context(), &kgo.Record{Topic: g.topicName("campaigns"), Value: []byte("no campaign")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	g.checkOnce(map[string]string{"delivered": "r0"}, patience)
	envtest.Until(t, patience, func() error {
		if n := g.db.Int(`SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending'`); n != scheduledCampaigns {
			return fmt.Errorf("%d campaigns wait", n)
		}
		return nil
	})
	g.stop()
	return g
}

// arguments returns the command line of a command.
func (g *grantsTest) arguments(command string) []string {
	switch command {
	case "explain":
		return []string{"explain", "delivered", g.client()}
	case "cancel":
		g.held++
		return []string{"cancel", fmt.Sprintf("held-%d", g.held-1)}
	case "resolve":
		return []string{"resolve", "--lane", "0", "--accept-repeats"}
	case "replay":
		return []string{"replay", "--from", "earliest"}
	case "preview":
		file := filepath.Join(filepath.Dir(g.config), "preview.json")
		c := newCampaign("previewed", "r0")
		if err := os.WriteFile(file, c.JSON(), 0o600); err != nil {
			g.Fatal(err)
		}
		return []string{"preview", file}
	}
	return strings.Fields(command)
}

// client returns a client who was notified.
func (g *grantsTest) client() (id string) {
	g.queryRow(&id, `SELECT min(client_id) FROM subscribers_feedback`)
	return id
}

// try runs a command under a role, and returns what it said and whether it worked.
func (g *grantsTest) try(t *testing.T, role *grantedRole, command string, args []string) (said string, ok bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), g.binary, append([]string{"-c", g.config}, args...)...)
	cmd.Env = role.as(t)
	out, err := cmd.CombinedOutput()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		t.Fatal(err)
	}
	return string(out), err == nil && (command != "explain" || !strings.Contains(string(out), "not known"))
}

// checkCommand takes each right of a role away, runs a command, and runs the statements
// that the command names.
func (g *grantsTest) checkCommand(t *testing.T, roleName, command string) {
	t.Helper()
	role := g.roles[roleName]
	if said, ok := g.try(t, role, command, g.arguments(command)); !ok {
		t.Fatalf("%s under %s with all its rights: %s", command, roleName, said)
	}
	for _, grant := range role.grants {
		began := time.Now()
		_, take := grant.statements(role.name, g.db)
		g.log.clear()
		g.db.Exec(take)
		args := g.arguments(command)
		said, ok := g.try(t, role, command, args)
		if !ok {
			mend := role.mendingStatements(said)
			if len(mend) == 0 && g.process != nil && asksDaemon.MatchString(said) {
				g.restoreDaemon(t, role, command+" without "+grant.text())
				continue
			}
			g.note(t, role, command, grant, mend, said)
			for _, s := range mend {
				g.db.Exec(s)
			}
			if len(mend) > 0 {
				g.awaitCommand(t, role, command, args)
			}
		}
		role.giveAll()
		if g.process != nil {
			g.awaitCommand(t, role, command, g.arguments(command))
		}
		t.Logf("%s under %s without %s: %s", command, roleName, grant.text(), time.Since(began))
	}
}

// restoreDaemon brings the daemon back after a command has ended because a lane or the
// daemon has stopped without a right. The daemon's log names the statements.
func (g *grantsTest) restoreDaemon(t *testing.T, role *grantedRole, what string) {
	t.Helper()
	for _, s := range g.awaitStatements(t, role, what) {
		g.db.Exec(s)
	}
	g.awaitDelivery(t, what)
	role.giveAll()
}

// asksDaemon matches messages that leave the cause to the daemon.
var asksDaemon = regexp.MustCompile("dinnerbell status|being stopped|no daemon is running|context canceled")

// awaitCommand waits until a command works. A daemon takes a moment to come back, or is
// started again if it has halted.
func (g *grantsTest) awaitCommand(t *testing.T, role *grantedRole, command string, args []string) {
	t.Helper()
	envtest.Until(t, patience, func() error {
		g.startIfEnded()
		if said, ok := g.try(t, role, command, args); !ok {
			return fmt.Errorf("%s under %s after the statements: %s", command, role.documented, said)
		}
		return nil
	})
}

// startIfEnded starts the daemon again if it has ended by itself.
func (g *grantsTest) startIfEnded() {
	if g.process == nil {
		return
	}
	select {
	case <-g.process.Done():
		g.start()
	default:
	}
}

// note adds a row, and checks what was said.
func (g *grantsTest) note(t *testing.T, role *grantedRole, command string, grant documentedGrant, mend []string, said string) {
	t.Helper()
	if len(mend) == 0 {
		t.Errorf("%s under %s without %s names no statement: %s", command, role.documented, grant.text(), said)
		return
	}
	if grant.right != "OWNER" { // an owner has all rights
		role.checkNoMore(t, mend)
	}
	g.rows = append(g.rows, missingRow{command, role.documented, grant.text(), role.neutral(mend)})
}

// checkRun starts the daemon without each right.
func (g *grantsTest) checkRun(t *testing.T) {
	role := g.roles["dinnerbell"]
	for _, grant := range role.grants {
		began := time.Now()
		_, take := grant.statements(role.name, g.db)
		g.db.Exec(take)
		g.log = &logBuffer{}
		g.start()
		mend := g.awaitStatements(t, role, "run without "+grant.text())
		g.note(t, role, "run", grant, mend, g.log.tail(4096))
		for _, s := range mend {
			g.db.Exec(s)
		}
		g.awaitDelivery(t, grant.text())
		g.kill()
		role.giveAll()
		t.Logf("run without %s: %s", grant.text(), time.Since(began))
	}
	g.log = &logBuffer{}
	g.start()
	g.awaitReady()
}

// awaitStatements waits until the daemon's log names statements for a role.
func (g *grantsTest) awaitStatements(t *testing.T, role *grantedRole, what string) (mend []string) {
	t.Helper()
	envtest.Until(t, patience, func() error {
		said := strings.Join(rightsWarning.FindAllString(g.log.tail(1<<20), -1), "\n")
		if mend = role.mendingStatements(said); len(mend) == 0 {
			return fmt.Errorf("%s: %s", what, cmp.Or(said, g.log.tail(4096)))
		}
		return nil
	})
	return mend
}

// awaitDelivery waits until a campaign is delivered, and starts the daemon again if it has
// ended.
func (g *grantsTest) awaitDelivery(t *testing.T, without string) {
	t.Helper()
	id := envtest.Name("again")
	g.produce(0, newCampaign(id, "r1"))
	envtest.Until(t, patience, func() error {
		g.startIfEnded()
		if n := g.db.Int(`SELECT count(*) FROM subscribers_feedback WHERE adv_campaign_id = $1`, id); n == 0 {
			return fmt.Errorf("run without %s does not go on after the statements: %s", without, g.log.tail(4096))
		}
		return nil
	})
}

// checkSetup runs setup without each right, each time in a database of its own.
func (g *grantsTest) checkSetup(t *testing.T) {
	for n := range documentedGrants(t) {
		db := envtest.Database(t)
		role := newGrantedRole(t, db, "dinnerbell_setup")
		if n >= len(role.grants) {
			break
		}
		_, take := role.grants[n].statements(role.name, db)
		db.Exec(take)
		g.setConfig("source", map[string]any{"url": db.URL, "slot": g.name})
		said, ok := g.try(t, role, "setup", []string{"setup"})
		var all []string
		for range 8 { // a later step may need more
			mend := role.mendingStatements(said)
			if all = append(all, mend...); ok || len(mend) == 0 {
				break
			}
			for _, s := range mend {
				db.Exec(s)
			}
			said, ok = g.try(t, role, "setup", []string{"setup"})
		}
		g.note(t, role, "setup", role.grants[n], all, said)
		if !ok {
			t.Errorf("setup without %s: %s", role.grants[n].text(), said)
		}
	}
}
