package livepage

import (
	"fmt"
	"html/template"
	"math"
	"strings"
	"time"

	"dinnerbell/cmd/dinnerbell/internal/status"
	"dinnerbell/cmd/dinnerbell/internal/terminal"
)

// functions are those of the templates.
var functions = template.FuncMap{
	"thousands": terminal.Thousands,
	"bytes":     bytesText,
	"perSecond": perSecond,
	"span":      formatSpan,
	"since":     func(now, t time.Time) string { return formatSpan(now.Sub(t)) },
	"until":     func(now, t time.Time) string { return formatSpan(t.Sub(now)) },
	"clock":     formatClock,
	"stamp":     func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"percent":   func(p float64) string { return fmt.Sprintf("%.0f %%", math.Floor(p)) },
	"ms":        formatMilliseconds,
	"seconds":   func(s *float64) time.Duration { return time.Duration(*s * float64(time.Second)) },
	"count":     countText,
	"short":     shortenID,
	"commands":  splitCommands,
	"sentence":  mendSentence,
	"lower":     strings.ToLower,
	"upper":     func(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] },
	"add":       func(a, b int64) int64 { return a + b },
	"words":     func(s any) string { return strings.ReplaceAll(fmt.Sprint(s), "_", " ") },
}

// bytesText writes a number of bytes; one that is not known is a nil pointer.
func bytesText(n any) string {
	switch n := n.(type) {
	case int64:
		return terminal.Bytes(n)
	case *int64:
		if n != nil {
			return terminal.Bytes(*n)
		}
	}
	return "not known"
}

// countText writes a number; one that is not known is a nil pointer.
func countText(n *int64) string {
	if n == nil {
		return "–"
	}
	return terminal.Thousands(*n)
}

// perSecond writes a rate.
func perSecond(x float64) string {
	if x > 0 && x < 10 {
		return fmt.Sprintf("%.1f", x)
	}
	return terminal.Thousands(int64(math.Round(x)))
}

// formatSpan writes a duration with its one or two largest units: "3 d 4 h", "12 min", "40 s".
func formatSpan(d time.Duration) string {
	d = max(d, 0)
	switch days, hours := int(d.Hours())/24, int(d.Hours())%24; {
	case days > 365:
		return fmt.Sprintf("%d years", days/365)
	case days >= 10:
		return fmt.Sprintf("%d d", days)
	case days > 0:
		return fmt.Sprintf("%d d %d h", days, hours)
	case hours > 0:
		return fmt.Sprintf("%d h %d min", hours, int(d.Minutes())%60)
	case d >= time.Minute:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return fmt.Sprintf("%d s", int(d.Seconds()))
}

// formatMilliseconds writes a time of milliseconds, as a length of time that people read.
func formatMilliseconds(ms any) string {
	x := 0.0
	switch n := ms.(type) {
	case float32:
		x = float64(n)
	case float64:
		x = n
	case time.Duration:
		x = float64(n) / float64(time.Millisecond)
	}
	switch {
	case x < 1:
		return fmt.Sprintf("%.1f ms", x)
	case x < 1000:
		return fmt.Sprintf("%.0f ms", x)
	case x < 60_000:
		return fmt.Sprintf("%.1f s", x/1000)
	default:
		return formatSpan(time.Duration(x * float64(time.Millisecond)))
	}
}

// formatClock writes a moment: the time of day, with the date where it is another day.
func formatClock(now, t time.Time) string {
	switch t = t.UTC(); {
	case t.IsZero():
		return "–"
	case t.Year() == now.Year() && t.YearDay() == now.YearDay():
		return t.Format("15:04")
	case t.Year() == now.Year():
		return t.Format("Jan 2 15:04")
	}
	return t.Format("2006-01-02")
}

// shortenID returns the beginning of an id.
func shortenID(id string) string {
	const most = 14
	letters := []rune(id)
	if len(letters) <= most {
		return id
	}
	return string(letters[:most-1]) + "…"
}

// part is a part of a text: a command to copy, or words.
type part struct {
	Text    string
	Command bool
}

// mendSentence returns what mends a problem without its statements, which stand on lines of
// their own.
func mendSentence(p status.Problem) string {
	if len(p.Statements) > 0 {
		return p.Advice
	}
	return p.Mend
}

// splitCommands divides a text into its words and the commands between backquotes.
func splitCommands(text string) []part {
	var parts []part
	for i, t := range strings.Split(text, "`") {
		if t != "" {
			parts = append(parts, part{Text: t, Command: i%2 == 1})
		}
	}
	return parts
}
