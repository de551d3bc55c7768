package campaign

import (
	"bytes"
	"strconv"
	"strings"
	"time"
)

// maxDigits bounds the digits of a number that is read as a time.
const maxDigits = 30

// parseWholeNumber reads a JSON number that is whole, exactly: also one with a fraction
// or an exponent, such as 1659203516.0 or 1.659203516e9.
func parseWholeNumber(raw []byte) (int64, bool) {
	if raw[0] != '-' && (raw[0] < '0' || raw[0] > '9') {
		return 0, false
	}
	mantissa, exponent := raw, 0
	if i := bytes.IndexAny(raw, "eE"); i >= 0 {
		e, err := strconv.Atoi(string(raw[i+1:]))
		if err != nil || e < -maxDigits || e > maxDigits {
			return 0, false
		}
		mantissa, exponent = raw[:i], e
	}
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	sign, whole, negative := "", bytes.TrimPrefix(whole, []byte("-")), bytes.HasPrefix(whole, []byte("-"))
	if negative {
		sign = "-"
	}
	digits := string(whole) + string(fraction) // × 10^(exponent - len(fraction))
	point := len(whole) + exponent
	switch {
	case point < 0:
		digits, point = strings.Repeat("0", -point)+digits, 0
	case point > len(digits):
		digits += strings.Repeat("0", point-len(digits))
	}
	if strings.Trim(digits[point:], "0") != "" || len(digits[:point]) > maxDigits {
		return 0, false
	}
	n, err := strconv.ParseInt(sign+"0"+digits[:point], 10, 64)
	return n, err == nil
}

// diagnoseTime returns the reason why a value is not the whole number of seconds that
// must stand there.
func diagnoseTime(name string, raw []byte) *Refusal {
	is, class := describeValue(raw), ClassWrongType
	switch raw[0] {
	case '"':
		is += diagnoseTimeText(strings.TrimSpace(string(unquote(raw))))
	case '{', '[', 't', 'f':
	default:
		class = ClassBadTime
		if bytes.ContainsAny(raw, ".eE") {
			is += "; leave the fraction out"
		} else {
			is += ", which is too large"
		}
	}
	return Refuse(class, "%s is not a whole number of seconds: it is %s", name, is)
}

// timeLayouts are forms of time that producers send as text.
var timeLayouts = []struct {
	layout string
	zone   bool
}{
	{time.RFC3339, true}, {"2006-01-02T15:04:05Z0700", true}, {"2006-01-02T15:04Z07:00", true},
	{"2006-01-02T15:04:05", false}, {"2006-01-02T15:04", false}, {time.DateOnly, false},
}

// diagnoseTimeText says what the text in the place of a time looks like, and what must
// stand there.
func diagnoseTimeText(text string) string {
	if len(text) > excerptBytes {
		return ", and a number such as 1659203516 is expected"
	}
	if seconds, whole := parseNumberText(text); whole {
		if unit := unitOf(seconds); unit != nil {
			return "; write it without quotes and in seconds: " + unit.describe(seconds)
		}
		return "; write it without quotes"
	}
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return "; write it without quotes and without a fraction"
	}
	for _, l := range timeLayouts {
		at, err := time.Parse(l.layout, strings.Replace(text, " ", "T", 1))
		switch {
		case err != nil:
		case l.zone:
			return ", which is a time in ISO 8601; the number " + strconv.FormatInt(at.Unix(), 10) + " is expected"
		default:
			return ", which is a time in ISO 8601 without a zone; a number such as 1659203516 is expected"
		}
	}
	return ", and a number such as 1659203516 is expected"
}

// parseNumberText is parseWholeNumber for a text that need not be a JSON number.
func parseNumberText(text string) (int64, bool) {
	if text == "" || strings.Trim(text, "+-0123456789.eE") != "" {
		return 0, false
	}
	return parseWholeNumber([]byte(text))
}

// diagnoseSecond returns the reason why a whole number is no second of the years 1970 to
// 9999.
func diagnoseSecond(name string, at int64) *Refusal {
	hint := ""
	if unit := unitOf(at); unit != nil {
		hint = "; it looks like " + unit.name + ": in seconds, " + unit.describe(at)
	}
	return Refuse(ClassBadTime, "%s is %d, which is not a Unix second of the years 1970 to 9999%s", name, at, hint)
}

// timeUnit is a unit below the second.
type timeUnit struct {
	name   string
	second int64
}

var timeUnits = [...]timeUnit{{"milliseconds", 1e3}, {"microseconds", 1e6}, {"nanoseconds", 1e9}}

// earliestMistaken is the first second, 2000-01-01, that a number in a smaller unit is taken
// for: no producer means an earlier one.
const earliestMistaken = 946_684_800

// unitOf returns the unit in which a time that is too large for seconds is a date since
// 2000; nil if there is none.
func unitOf(at int64) *timeUnit {
	for i := range timeUnits {
		if seconds := at / timeUnits[i].second; at > MaxUnix && seconds >= earliestMistaken && seconds <= MaxUnix {
			return &timeUnits[i]
		}
	}
	return nil
}

// describe returns the time in seconds and as a date.
func (u *timeUnit) describe(at int64) string {
	seconds := at / u.second
	return strconv.FormatInt(seconds, 10) + " is " + time.Unix(seconds, 0).UTC().Format(time.RFC3339)
}
