// Package completion completes command lines in bash, zsh and fish. Each shell asks
// the program itself for the words that can come next, so the answer always fits the
// program at hand. The libraries that do this for kong are no longer kept.
package completion

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Command is the hidden command that the scripts call: its arguments are the words of
// the line up to the cursor, the last one being completed, without the program's name.
const Command = "__complete"

// scripts hold the code for each shell. They fall back to file names where the program
// has no answer.
var scripts = map[string]string{
	"bash": `_dinnerbell() {
  local IFS=$'\n'
  COMPREPLY=($(dinnerbell ` + Command + ` -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _dinnerbell dinnerbell
`,
	"zsh": `#compdef dinnerbell
_dinnerbell() {
  local -a words_found
  words_found=("${(@f)$(dinnerbell ` + Command + ` -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  words_found=(${words_found:#})
  if (( ${#words_found} )); then compadd -a words_found; return; fi
  compset -P '--*='
  _files
}
compdef _dinnerbell dinnerbell
# The file of an $fpath is the function itself at its first call.
if [[ $funcstack[1] == _dinnerbell ]]; then _dinnerbell; fi
`,
	"fish": `function __dinnerbell_words
  set -l line (commandline -opc) (commandline -ct)
  dinnerbell ` + Command + ` -- $line[2..-1] 2>/dev/null
end
complete -c dinnerbell -f -n 'count (__dinnerbell_words) >/dev/null' -a '(__dinnerbell_words)'
complete -c dinnerbell -F -n 'not count (__dinnerbell_words) >/dev/null'
`,
}

// Shells lists the shells that Script knows.
func Shells() []string { return []string{"bash", "zsh", "fish"} }

// Script returns the code that a shell evaluates.
func Script(shell string) (string, error) {
	s, ok := scripts[shell]
	if !ok {
		return "", fmt.Errorf("no completion for %q; shells: %s", shell, strings.Join(Shells(), ", "))
	}
	return s, nil
}

// Words returns what can stand in the place of the last of words: the sub-commands,
// flags or values of an enumeration that begin with it. No words mean that only a file
// name or a free text can.
func Words(app *kong.Application, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	node, flag, position := walk(app.Node, words[:len(words)-1])
	var found []string
	switch name, _, assigned := strings.Cut(last, "="); {
	case flag != nil:
		found = flag.EnumSlice()
	case assigned:
		if f := findFlag(node, name); f != nil {
			for _, v := range f.EnumSlice() {
				found = append(found, name+"="+v)
			}
		}
	case strings.HasPrefix(last, "-"):
		found = flagNames(node)
	default:
		for _, child := range node.Children {
			if !child.Hidden && child.Type == kong.CommandNode {
				found = append(found, child.Name)
			}
		}
		if position < len(node.Positional) {
			found = append(found, node.Positional[position].EnumSlice()...)
		}
	}
	found = slices.DeleteFunc(found, func(w string) bool { return w == "" || !strings.HasPrefix(w, last) })
	slices.Sort(found)
	return slices.Compact(found)
}

// walk follows complete words to the node that they select. flag is the flag whose value
// comes next, nil if none does; position counts the positional arguments so far.
func walk(node *kong.Node, words []string) (at *kong.Node, flag *kong.Flag, position int) {
	for _, w := range words {
		if flag != nil {
			flag = nil
			continue
		}
		if strings.HasPrefix(w, "-") && w != "-" {
			if f := findFlag(node, w); f != nil && !f.IsBool() && !strings.Contains(w, "=") {
				flag = f
			}
			continue
		}
		i := slices.IndexFunc(node.Children, func(c *kong.Node) bool { return c.Name == w && c.Type == kong.CommandNode })
		if i < 0 {
			position++
			continue
		}
		node, position = node.Children[i], 0
	}
	return node, flag, position
}

// findFlag returns the flag of node or of a node above it that a word names.
func findFlag(node *kong.Node, word string) *kong.Flag {
	name, _, _ := strings.Cut(word, "=")
	for n := node; n != nil; n = n.Parent {
		for _, f := range n.Flags {
			if name == "--"+f.Name || f.Short != 0 && name == "-"+string(f.Short) {
				return f
			}
		}
	}
	return nil
}

// flagNames lists the flags of node and of the nodes above it.
func flagNames(node *kong.Node) (names []string) {
	for n := node; n != nil; n = n.Parent {
		for _, f := range n.Flags {
			if !f.Hidden {
				names = append(names, "--"+f.Name)
			}
		}
	}
	return names
}
