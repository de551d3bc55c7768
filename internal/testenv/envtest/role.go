package envtest

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// RoleURL creates the role of scripts/role.sql under a name that is unique to
// this database, and returns its connection string. If want is "source.url" or
// "sink.url", RoleURL omits the statements below a comment that names the other
// one. Roles belong to the server and disappear with it after the tests.
func (db *DB) RoleURL(want ...string) string {
	db.t.Helper()
	script, err := os.ReadFile(filepath.Join(Root(db.t), "scripts", "role.sql"))
	if err != nil {
		db.t.Fatal(err)
	}
	role := "role_" + db.Name
	wanted := true
	for line := range strings.SplitSeq(string(script), "\n") {
		if _, database, ok := strings.Cut(line, "-- In the database of "); ok {
			wanted = len(want) == 0
			for _, w := range want {
				wanted = wanted || strings.HasPrefix(database, w)
			}
		}
		if !wanted || line == "" || strings.HasPrefix(line, "--") {
			continue
		}
		line = strings.Replace(line, "ROLE dinnerbell ", "ROLE "+role+" ", 1)
		db.Exec(strings.Replace(line, "TO dinnerbell;", "TO "+role+";", 1))
	}
	as, err := url.Parse(db.URL)
	if err != nil {
		db.t.Fatal(err)
	}
	as.User = url.User(role)
	return as.String()
}
