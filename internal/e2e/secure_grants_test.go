package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// documentedGrant is one right of Postgres that docs/security.md or scripts/role.sql gives
// to a role.
type documentedGrant struct {
	role   string
	right  string // a privilege, REPLICATION or OWNER
	object string // "": the role itself
}

// everybodysGrants are the rights that PUBLIC has in a new database. A hardened database
// gives them to roles alone, as the tests do.
var everybodysGrants = []documentedGrant{
	{right: "CONNECT", object: "DATABASE de"}, {right: "USAGE", object: "SCHEMA public"},
}

var (
	createRole = regexp.MustCompile(`(?m)^CREATE ROLE (\w+) (LOGIN.*);$`)
	grantTo    = regexp.MustCompile(`(?m)^GRANT ([A-Z, ]+) ON (.+) TO (\w+);$`)
	ownerTo    = regexp.MustCompile(`(?m)^ALTER TABLE (\S+) OWNER TO (\w+);$`)
)

// documentedGrants reads the rights of all roles, one for each privilege, with those that
// everybody has.
func documentedGrants(t *testing.T) (all []documentedGrant) {
	t.Helper()
	for _, file := range []string{"docs/security.md", "scripts/role.sql"} {
		text := string(readFile(t, filepath.Join(envtest.Root(t), file)))
		for _, m := range createRole.FindAllStringSubmatch(text, -1) {
			for _, g := range everybodysGrants {
				g.role = m[1]
				all = append(all, g)
			}
			if strings.Contains(m[2], "REPLICATION") {
				all = append(all, documentedGrant{role: m[1], right: "REPLICATION"})
			}
		}
		for _, m := range ownerTo.FindAllStringSubmatch(text, -1) {
			all = append(all, documentedGrant{role: m[2], right: "OWNER", object: m[1]})
		}
		for _, m := range grantTo.FindAllStringSubmatch(text, -1) {
			for right := range strings.SplitSeq(m[1], ", ") {
				if g := (documentedGrant{role: m[3], right: right, object: m[2]}); !slices.Contains(all, g) {
					all = append(all, g)
				}
			}
		}
	}
	return all
}

// statements returns what gives the right to a role of the server, and what takes it.
func (g documentedGrant) statements(role string, db *envtest.DB) (give, take string) {
	object := strings.ReplaceAll(g.object, "DATABASE de", "DATABASE "+db.Name)
	switch g.right {
	case "REPLICATION":
		return "ALTER ROLE " + role + " REPLICATION", "ALTER ROLE " + role + " NOREPLICATION"
	case "OWNER":
		return "ALTER TABLE " + object + " OWNER TO " + role, "ALTER TABLE " + object + " OWNER TO postgres"
	}
	return fmt.Sprintf("GRANT %s ON %s TO %s", g.right, object, role), fmt.Sprintf("REVOKE %s ON %s FROM %s", g.right, object, role)
}

// text returns the right as the table shows it.
func (g documentedGrant) text() string {
	switch {
	case g.right == "OWNER":
		return "ownership of " + g.object
	case g.object == "":
		return g.right
	}
	return g.right + " on " + g.object
}

// grantedRole is a role of the server with the documented rights.
type grantedRole struct {
	documented string // as the document names it
	name       string // on the server
	db         *envtest.DB
	grants     []documentedGrant
}

// newGrantedRole makes a role with the documented rights in a database.
func newGrantedRole(t *testing.T, db *envtest.DB, documented string) *grantedRole {
	t.Helper()
	r := &grantedRole{documented: documented, name: documented + "_" + db.Name, db: db}
	db.Exec("CREATE ROLE " + r.name + " LOGIN")
	for _, g := range documentedGrants(t) {
		if g.role == documented {
			r.grants = append(r.grants, g)
		}
	}
	if len(r.grants) <= len(everybodysGrants) {
		t.Fatalf("no document grants anything to %s", documented)
	}
	for _, g := range everybodysGrants {
		_, take := g.statements("PUBLIC", db)
		db.Exec(take)
	}
	r.giveAll()
	return r
}

// giveAll gives the role the documented rights.
func (r *grantedRole) giveAll() {
	for _, g := range r.grants {
		give, _ := g.statements(r.name, r.db)
		r.db.Exec(give)
	}
}

// as returns the environment of a command that runs under the role.
func (r *grantedRole) as(t *testing.T) []string {
	t.Helper()
	return append(os.Environ(), "DINNERBELL_SOURCE_URL="+strings.Replace(r.db.URL, "postgres@", r.name+"@", 1))
}

// mendingStatements returns the statements that a message names for the role, each once.
func (r *grantedRole) mendingStatements(said string) (all []string) {
	said = strings.ReplaceAll(said, `\"`, `"`)
	name := `"?` + regexp.QuoteMeta(r.name) + `"?`
	for _, s := range regexp.MustCompile(`GRANT [A-Z, ]+ ON [^;()]+? TO `+name+`|ALTER ROLE `+name+` REPLICATION|ALTER TABLE \S+ OWNER TO `+name).FindAllString(said, -1) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// neutral returns statements as the table shows them.
func (r *grantedRole) neutral(statements []string) string {
	text := strings.Join(statements, "; ")
	text = strings.ReplaceAll(text, r.name, r.documented)
	return strings.ReplaceAll(text, r.db.Name, "de")
}

// checkNoMore reports statements that give the role a right which no document gives it.
func (r *grantedRole) checkNoMore(t *testing.T, statements []string) {
	t.Helper()
	for _, s := range statements {
		m := regexp.MustCompile(`^GRANT ([A-Z, ]+) ON (?:TABLE )?(.+) TO `).FindStringSubmatch(s)
		if m == nil {
			continue
		}
		object := strings.ReplaceAll(strings.ReplaceAll(m[2], `"`, ""), r.db.Name, "de")
		for right := range strings.SplitSeq(m[1], ", ") {
			if !slices.Contains(r.grants, documentedGrant{role: r.documented, right: right, object: object}) {
				t.Errorf("%s: %q gives %s on %s, which no document gives the role", r.documented, s, right, object)
			}
		}
	}
}
