package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

// executed are the documents whose command blocks tests run, with the number of blocks
// that they do not run.
var executed = map[string]int{
	"docs/campaigns.md":       0,
	"docs/operations.md":      0,
	"README.md":               0,
	"docs/tutorial.md":        0,
	"docs/migrating.md":       0,
	"docs/several-daemons.md": 0,
	"docs/security.md":        1, // kafka-acls.sh
}

// indentedCommand matches a command in the older form of a block, which no test would
// run.
var indentedCommand = regexp.MustCompile(`(?m)^    (?:\$ )?(?:bin/)?(?:dinnerbell|kcat|psql|make|curl|docker|kubectl|SELECT|ALTER) .*$`)

// Every command block of the documents is one that a test runs, or says why not; the
// number of those is known.
func TestCommandBlocksAreRunOrCounted(t *testing.T) {
	t.Parallel()
	for doc, want := range executed {
		text, err := os.ReadFile(filepath.Join(envtest.Root(t), doc))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range indentedCommand.FindAllString(string(text), -1) {
			t.Errorf("%s: put it into a block of ```sh, so that a test runs it: %s", doc, strings.TrimSpace(line))
		}
		skipped := 0
		for _, b := range readBlocks(string(text)) {
			if !slices.Contains([]string{"sh", "sql", "text", "yaml", "json", "go", "java", "python"}, b.lang) {
				t.Errorf("%s, line %d: a block of the language %q", doc, b.line, b.lang)
			}
			if strings.HasPrefix(b.text, notRun) {
				skipped++
			}
		}
		if skipped != want {
			t.Errorf("%s has %d blocks that are not run, want %d", doc, skipped, want)
		}
	}
}

func TestReadBlocks(t *testing.T) {
	t.Parallel()
	blocks := readBlocks("# A\n```sh\nx CAMPAIGN\ny CAMPAIGN\n```\n## B\n```text\nz\n```\n")
	want := []block{{"A", 2, "sh", "x CAMPAIGN\ny CAMPAIGN\n"}, {"B", 7, "text", "z\n"}}
	if !slices.Equal(blocks, want) {
		t.Errorf("%+v, want %+v", blocks, want)
	}
	words := map[string][]string{"CAMPAIGN": {"one", "other"}}
	if got := replaceWords(blocks[0].text, words) + replaceWords("z CAMPAIGN", words); got != "x one\ny other\nz other" {
		t.Errorf("%q", got)
	}
}

func TestMissingLine(t *testing.T) {
	t.Parallel()
	const printed = "lane 3   ok\nNOTIFIED: in topic x\n1000|1000\n"
	for shown, want := range map[string]string{
		"lane 0 ok\n": "", "NOTIFIED: …\n5|5\n": "", "…\n7|8": "",
		"lane 0 FAIL\n": "lane 0 FAIL", "1|1\nlane 0 ok\n": "lane 0 ok", "1|1|1\n": "1|1|1",
	} {
		if got := missingLine(shown, printed); got != want {
			t.Errorf("%q: %q is missing, want %q", shown, got, want)
		}
	}
}
