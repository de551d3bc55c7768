package e2e

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// Each role of docs/security.md has enough rights for its commands, none is a superuser,
// and the role that reads changes nothing.
func TestSecurityIsExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.useDatabase()
	w.db.Exec(testenv.ContractTables)
	w.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) SELECT 'client-' || n, 'restaurant-0' FROM generate_series(1, 50) n`)
	w.kafka.TopicNamed("campaigns", 1, nil)
	w.writeFile("dinnerbell.yaml", "source: {url: 'postgres://nobody@127.0.0.1:5432/de'}\nkafka: {brokers: ['127.0.0.1:9092']}\nstate: {dir: /var/lib/dinnerbell}\nhttp: {listen: '127.0.0.1:8420'}\n")
	delivered := func() map[string][]string {
		return map[string][]string{"CAMPAIGN": {"pizza"}, "CLIENT": {"client-1"}, "RESTAURANT": {"restaurant-0"}}
	}
	w.read("docs/security.md", map[string]situation{
		"Delivering": {func() map[string][]string {
			w.send(0, newCampaign("pizza", "restaurant-0"))
			w.await(50, rowsOfCampaign, "pizza")
			w.awaitShipped(50)
			return delivered()
		}},
		"Operating": {func() map[string][]string {
			w.send(0, scheduled("held", "restaurant-0"), scheduled("kept", "restaurant-0"))
			w.await(2, `SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending'`)
			return map[string][]string{"CAMPAIGN": {"held"}}
		}},
		"Reading": {delivered},
	})
	out := w.runBlock(block{heading: "Reading", lang: "sh", text: "dinnerbell cancel kept 2>&1 || true"})
	if !strings.Contains(out, "permission denied") {
		t.Errorf("cancel under dinnerbell_read: %s", out)
	}
	w.await(1, `SELECT count(*) FROM dinnerbell.campaign WHERE state = 'pending'`)
	w.await(0, `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'dinnerbell%' AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls)`)
	w.await(2, `SELECT count(*) FROM pg_roles WHERE rolname LIKE 'dinnerbell%' AND rolreplication`)
	w.stopDaemon(syscall.SIGTERM)
}

// The role that docker-compose.yml makes is no superuser, and sets up and runs.
func TestComposeRoleIsExecuted(t *testing.T) {
	t.Parallel()
	w := newDocWorld(t)
	w.useDatabase()
	script, ok := node(t, readYAML(t, "docker-compose.yml"), "configs", "tables", "content").(string)
	if !ok {
		t.Fatal("no script of the tables")
	}
	if err := os.WriteFile(w.path("tables.sql"), []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	w.kafka.TopicNamed("campaigns", 1, nil)
	w.writeFile("dinnerbell.yaml", "source: {url: 'postgres://dinnerbell@127.0.0.1:5432/de'}\nkafka: {brokers: ['127.0.0.1:9092']}\nstate: {dir: /var/lib/dinnerbell}\nhttp: {listen: '127.0.0.1:8420'}\n")
	w.env = append(w.env, "POSTGRES_PASSWORD=it's a secret")
	w.runBlock(block{heading: "compose", lang: "sh", text: "psql -q -v ON_ERROR_STOP=1 \"$DATABASE\" -f tables.sql\ndinnerbell setup\ndinnerbell run\n"})
	w.await(0, `SELECT count(*) FROM pg_roles WHERE rolname = 'dinnerbell' AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolbypassrls)`)
	w.db.Exec(`SET ROLE dinnerbell; INSERT INTO public.subscribers_restaurants (client_id, restaurant_id) VALUES ('client-1', 'restaurant-0'); RESET ROLE`)
	w.send(0, newCampaign("pizza", "restaurant-0"))
	w.await(1, rowsOfCampaign, "pizza")
	w.stopDaemon(syscall.SIGTERM)
}

// Every service of docker-compose.yml gives up what it does not need, and dinnerbell's
// write nothing outside of their volume.
func TestComposeIsHardened(t *testing.T) {
	t.Parallel()
	doc := readYAML(t, "docker-compose.yml")
	services, _ := node(t, doc, "services").(map[string]any)
	for name, s := range services {
		if drop := asList(s, "cap_drop"); len(drop) != 1 || drop[0] != "ALL" {
			t.Errorf("service %s keeps capabilities: drops %q", name, drop)
		}
		if options := asList(s, "security_opt"); len(options) != 1 || options[0] != "no-new-privileges:true" {
			t.Errorf("service %s: security_opt %q", name, options)
		}
		for _, added := range asList(s, "cap_add") {
			if name != "postgres" || !slices.Contains([]string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}, added) {
				t.Errorf("service %s has the capability %s", name, added)
			}
		}
		for _, port := range asList(s, "ports") {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("service %s listens for other machines: %s", name, port)
			}
		}
	}
	for _, name := range []string{"setup", "dinnerbell", "prometheus"} {
		if node(t, doc, "services", name, "read_only") != true {
			t.Errorf("service %s writes its root file system", name)
		}
	}
	if env, _ := node(t, doc, "services", "postgres", "environment").(map[string]any); hasKey(env, "POSTGRES_USER") {
		t.Error("the image makes a superuser of the role of POSTGRES_USER")
	}
	if _, err := os.Stat(envtest.Root(t) + "/SECURITY.md"); err != nil {
		t.Error(err)
	}
}
