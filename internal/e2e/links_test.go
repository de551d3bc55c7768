package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"dinnerbell/internal/testenv/envtest"
)

var (
	fence       = regexp.MustCompile("(?ms)^```.*?^```")
	code        = regexp.MustCompile("`[^`\n]*`")
	markdown    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading     = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	linkText    = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	namedAnchor = regexp.MustCompile(`\b(docs/[A-Za-z0-9_/.-]+\.md)(#[A-Za-z0-9_-]+)?`)
)

// Every relative link of a document leads to a file of the repository, and its anchor to
// a heading of that file.
func TestLinksOfDocumentsHold(t *testing.T) {
	t.Parallel()
	root := envtest.Root(t)
	texts := documents(t, root)
	links := 0
	for doc, text := range texts {
		text = code.ReplaceAllString(fence.ReplaceAllString(text, ""), "")
		for _, m := range markdown.FindAllStringSubmatch(text, -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			path := doc
			if target != "" {
				path = filepath.Join(filepath.Dir(doc), target)
			}
			if _, err := os.Stat(filepath.Join(root, path)); err != nil {
				t.Errorf("%s links to %s, which does not exist", doc, m[1])
			} else if anchor != "" && !anchors(texts[path])[anchor] {
				t.Errorf("%s links to %s: %s has no such heading", doc, m[1], path)
			}
		}
	}
	if links < 50 {
		t.Errorf("only %d links were found", links)
	}
}

// A message of a program, an alert or a comment that names a document, or a heading of
// one, names one that exists.
func TestDocumentsNamedElsewhereExist(t *testing.T) {
	t.Parallel()
	root := envtest.Root(t)
	texts := documents(t, root)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "build" || d.Name() == "bin"):
			return filepath.SkipDir
		case d.IsDir():
			return nil
		}
		switch filepath.Ext(path) {
		case ".go", ".yaml", ".yml", ".json", ".sh", ".html", ".js":
		default:
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range namedAnchor.FindAllStringSubmatch(string(text), -1) {
			if doc, ok := texts[m[1]]; !ok {
				t.Errorf("%s names %s, which does not exist", path, m[1])
			} else if m[2] != "" && !anchors(doc)[m[2][1:]] {
				t.Errorf("%s names %s%s, and there is no such heading", path, m[1], m[2])
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// anchors returns the ids that GitHub gives to the headings of a document.
func anchors(text string) map[string]bool {
	ids := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		title := linkText.ReplaceAllString(m[1], "$1")
		id := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(title))
		for n, base := 1, id; ids[id]; n++ {
			id = base + "-" + strconv.Itoa(n)
		}
		ids[id] = true
	}
	return ids
}
