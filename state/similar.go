package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"dinnerbell/state/id"
)

// SimilarRestaurant finds a restaurant with subscriptions whose id is not the
// given one and that SQL may take for equal to it: another spelling of a UUID (a
// uuid column gives it back canonically), blanks at the end (a char(n) column does
// not count them), other letter case (citext, a collation that ignores case; only all
// lower and all upper case are looked for). It costs a few seeks.
func (s *Store) SimilarRestaurant(restaurant string) (id string, found bool, err error) {
	scan, err := s.NewScan()
	if err != nil {
		return "", false, err
	}
	id, found, err = scan.similar(restaurant)
	return id, found, errors.Join(err, scan.Close())
}

func (c *Scan) similar(restaurant string) (id string, found bool, err error) {
	trimmed := strings.TrimRight(restaurant, " ")
	spellings := []string{trimmed, strings.ToLower(trimmed), strings.ToUpper(trimmed)}
	if uuid, ok := canonicalUUID(trimmed); ok {
		spellings = append(spellings, uuid, strings.ToUpper(uuid))
	}
	slices.Sort(spellings)
	for _, text := range slices.Compact(spellings) {
		for _, padded := range []bool{false, true} {
			if id, err = c.firstRestaurant(text, padded); err != nil {
				return "", false, err
			}
			if id != "" && id != restaurant {
				return id, true, nil
			}
		}
	}
	return "", false, nil
}

// firstRestaurant is text if that restaurant has subscriptions, or with padded
// the first one that is text and blanks; "" if there is none.
func (c *Scan) firstRestaurant(text string, padded bool) (string, error) {
	release, err := c.s.use()
	if err != nil {
		return "", err
	}
	defer release()
	packed, err := id.Pack(text)
	if err != nil {
		return "", nil // it is no id, so nobody has it
	}
	if padded {
		packed = id.TextPrefix(text + " ")
	}
	start := appendJoinPrefix(nil, c.gen, packed)
	c.subs.SetBounds(start, prefixEnd(nil, start))
	if !c.subs.First() {
		return "", c.checkSimilar(c.subs.Error())
	}
	key := bytes.TrimPrefix(c.subs.Key(), appendGen(nil, spaceJoin, c.gen))
	n := id.PackedLen(key)
	if n == 0 {
		return "", c.checkSimilar(fmt.Errorf("read join key %x: %w", c.subs.Key(), ErrCorrupt))
	}
	if id := id.ID(key[:n]).Text(); strings.TrimRight(id, " ") == text {
		return id, nil
	}
	return "", nil
}

func (c *Scan) checkSimilar(err error) error {
	if err == nil {
		return nil
	}
	return c.s.check(fmt.Errorf("look for a similar restaurant: %w", err))
}

// canonicalUUID gives the canonical spelling of what Postgres' uuid type accepts:
// any letter case, braces, a hyphen after any group of four digits.
// https://www.postgresql.org/docs/current/datatype-uuid.html
func canonicalUUID(text string) (string, bool) {
	if strings.HasPrefix(text, "{") && strings.HasSuffix(text, "}") {
		text = text[1 : len(text)-1]
	}
	digits := strings.ToLower(strings.ReplaceAll(text, "-", ""))
	if len(digits) != 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return "", false
	}
	return digits[:8] + "-" + digits[8:12] + "-" + digits[12:16] + "-" + digits[16:20] + "-" + digits[20:], true
}
