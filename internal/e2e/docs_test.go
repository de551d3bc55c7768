package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
)

var (
	namedTest = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	testFunc  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
)

// If a document names a test as its proof, the test exists.
func TestDocumentedTestsExist(t *testing.T) {
	t.Parallel()
	root := envtest.Root(t)
	there := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			if d != nil && d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
				return filepath.SkipDir
			}
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(text, -1) {
			there[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for doc, text := range documents(t, root) {
		for _, m := range namedTest.FindAllStringSubmatch(text, -1) {
			if !there[m[1]] {
				t.Errorf("%s names %s, which does not exist", doc, m[1])
			}
		}
	}
}

// namedFile is a file of the repository, as documents name it.
var namedFile = regexp.MustCompile(`\b(?:cdc|cmd|docs|internal|scripts|state|stream)/[A-Za-z0-9_/.-]+\.(?:go|md|pml|sh|sql)\b`)

// If a document names a file of the repository, the file exists.
func TestDocumentedFilesExist(t *testing.T) {
	t.Parallel()
	root := envtest.Root(t)
	for doc, text := range documents(t, root) {
		for _, name := range namedFile.FindAllString(text, -1) {
			if _, err := os.Stat(filepath.Join(root, name)); err != nil {
				t.Errorf("%s names %s: %v", doc, name, err)
			}
		}
	}
}

// documents returns the texts of the repository's documents by their paths.
func documents(t *testing.T, root string) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md", "scripts/*/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				t.Fatal(err)
			}
			texts[name] = string(text)
		}
	}
	if len(texts) < 10 {
		t.Fatalf("only %d documents", len(texts))
	}
	return texts
}
