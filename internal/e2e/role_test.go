package e2e

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

var sqlBlock = regexp.MustCompile("(?s)```sql\n(.*?)```")

// The daemon runs under the role of docs/configuration.md, with what is granted
// there and nothing else. setup is run by the tables' owner.
func TestRunsWithTheDocumentedRole(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.subscribe(2, 100)
	d.setup(1)
	doc, err := os.ReadFile(filepath.Join(envtest.Root(t), "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := sqlBlock.FindSubmatch(doc)
	if block == nil {
		t.Fatal("docs/configuration.md has no SQL for the role")
	}
	role := d.name // roles belong to the whole server, which ends with the tests
	sql := strings.ReplaceAll(string(block[1]), "ROLE dinnerbell ", "ROLE "+role+" ")
	sql = strings.ReplaceAll(sql, "TO dinnerbell;", "TO "+role+";")
	for statement := range strings.SplitSeq(sql, "\n") {
		if strings.TrimSpace(statement) != "" {
			d.db.Exec(statement)
		}
	}

	as, err := url.Parse(d.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.User(role)
	d.env = append(os.Environ(), "DINNERBELL_SOURCE_URL="+as.String())
	d.start()
	d.ready()
	d.db.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES ('late', 'r1')`)
	d.produce(0, newCampaign("c", "r1"))
	d.checkOnce(map[string]string{"c": "r1"}, patience)
	d.kill() // and again over what a killed daemon leaves behind
	d.start()
	d.produce(0, newCampaign("c2", "r0"))
	d.checkOnce(map[string]string{"c": "r1", "c2": "r0"}, patience)
	d.stop()
}
