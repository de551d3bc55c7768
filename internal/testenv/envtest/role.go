package envtest

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// RoleURL makes the role of scripts/role.sql, under a name of this database's
// own, and gives the connection string of it. What stands under a comment that
// names another database than want ("source.url" or "sink.url") is left out;
// no want is all of it. Roles belong to the whole server, which ends with the
// tests.
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
