// Package scenario draws the workload of a round: campaign messages, and
// transactions that change subscriptions.
package scenario

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"dinnerbell/scripts/chaos/history"
	"dinnerbell/scripts/chaos/random"
)

// CampaignAuthor draws campaigns. It remembers the campaigns that were sent, to
// repeat and edit them.
type CampaignAuthor struct {
	Random     *rand.Rand
	Partitions int32
	Life       time.Duration  // of a campaign that does not end during the round
	sent       []sentCampaign // the newest message per key, in the order of the first ones
	serial     int
}

type sentCampaign struct {
	history.CampaignFields
	partition int32
}

// The kinds of messages and how often each is drawn.
var messageKinds = []struct {
	name   string
	weight int
}{
	{"small", 30}, {"huge", 10}, {"repeat", 10}, {"edit", 14}, {"back", 4}, {"cancel", 9}, {"sibling", 8},
	{"expired", 3}, {"ending", 6}, {"soon", 7}, {"far", 2}, {"postpone", 3}, {"malformed", 8},
}

var messageWeights = func() []int {
	out := make([]int, len(messageKinds))
	for i, k := range messageKinds {
		out[i] = k.weight
	}
	return out
}()

// NextMessage draws a message and the way it is sent. now is a Unix second.
func (a *CampaignAuthor) NextMessage(now int64) *history.Message {
	m := a.drawMessage(now)
	switch {
	case a.Random.IntN(6) == 0:
		m.Transaction, m.Aborted = true, a.Random.IntN(3) == 0
	case m.Kind == "huge" && a.Random.IntN(3) == 0:
		m.Repeats = 20 + a.Random.IntN(30)
	}
	return m
}

func (a *CampaignAuthor) drawMessage(now int64) *history.Message {
	kind := messageKinds[random.WeightedIndex(a.Random, messageWeights)].name
	if kind == "malformed" {
		return &history.Message{Kind: kind, Partition: a.anyPartition(), Value: a.malformedValue(now)}
	}
	if len(a.sent) == 0 {
		switch kind {
		case "repeat", "edit", "back", "cancel", "sibling", "postpone":
			kind = "small"
		}
	}
	f, partition := a.drawFields(kind, now)
	return &history.Message{Kind: kind, Partition: partition, Value: a.encodeVariant(f), Fields: &f}
}

// drawFields draws the fields of a well-formed message, and its partition.
func (a *CampaignAuthor) drawFields(kind string, now int64) (history.CampaignFields, int32) {
	life := int64(a.Life / time.Second)
	switch kind {
	case "repeat", "edit", "back", "cancel", "postpone":
		return a.drawRepeated(kind, now)
	case "sibling": // the same campaign for another restaurant
		f := a.sent[a.Random.IntN(len(a.sent))].CampaignFields
		f.Restaurant = RestaurantName(a.Random.IntN(Restaurants))
		for _, s := range a.sent {
			if s.Campaign == f.Campaign && s.Restaurant == f.Restaurant {
				return a.drawRepeated("edit", now)
			}
		}
		f.Content += " (sibling)"
		f.Start, f.End = now-10, now+life
		return a.rememberSent(f, a.anyPartition())
	}
	f := a.NewCampaign(now)
	switch kind {
	case "huge":
		f.Restaurant = RestaurantName(0)
	case "expired":
		f.Start, f.End = now-100, now-a.Random.Int64N(5)
	case "ending":
		f.End = now + 1 + a.Random.Int64N(4)
	case "soon":
		f.Start = now + 1 + a.Random.Int64N(4)
	case "far":
		f.Start, f.End = now+2*life, now+3*life
	}
	return a.rememberSent(f, a.anyPartition())
}

// drawRepeated draws another message for a campaign that had one, half of the
// time on another partition.
func (a *CampaignAuthor) drawRepeated(kind string, now int64) (history.CampaignFields, int32) {
	i := max(0, len(a.sent)-1-a.Random.IntN(15)) // a recent one, which the daemon may still be delivering
	s := &a.sent[i]
	before := s.CampaignFields
	life := int64(a.Life / time.Second)
	switch kind {
	case "edit":
		s.Content = fmt.Sprintf("%s, edited %d", strings.SplitN(s.Content, ",", 2)[0], a.nextNumber())
		s.Start, s.End = min(s.Start, now), now+life
	case "back": // an edit back to the text of an earlier message
		s.Content = strings.SplitN(s.Content, ",", 2)[0]
		s.Start, s.End = s.Created-10, s.Created+life
	case "cancel":
		s.End = min(s.End, now-1)
		s.Start = min(s.Start, s.End-1)
	case "postpone":
		s.Start = now + 1 + a.Random.Int64N(3)
		s.End = now + life
	}
	partition := s.partition
	if a.Random.IntN(2) == 0 {
		partition = a.anyPartition()
	}
	if kind != "repeat" && s.CampaignFields != before {
		s.partition = partition
	}
	return s.CampaignFields, partition
}

func (a *CampaignAuthor) rememberSent(f history.CampaignFields, partition int32) (history.CampaignFields, int32) {
	a.sent = append(a.sent, sentCampaign{f, partition})
	return f, partition
}

func (a *CampaignAuthor) anyPartition() int32 { return a.Random.Int32N(a.Partitions) }

func (a *CampaignAuthor) nextNumber() int {
	a.serial++
	return a.serial
}

// NewCampaign returns a new campaign that is valid now and until after the
// round.
func (a *CampaignAuthor) NewCampaign(now int64) history.CampaignFields {
	n := a.nextNumber()
	f := history.CampaignFields{
		Restaurant: RestaurantName(1 + a.Random.IntN(Restaurants-1)),
		Campaign:   fmt.Sprintf("campaign-%d", n),
		Content:    fmt.Sprintf("offer %d <b>\"–20%%\"</b> & \u2028more \\ \t", n),
		Owner:      "Ivanov Ivan Ivanovich",
		Contact:    "iiivanov@restaurant.ru",
		Start:      now - 10, End: now + int64(a.Life/time.Second), Created: now,
	}
	if n%7 == 3 {
		f.Campaign = fmt.Sprintf("скидка:%d%%", n)
	}
	return f
}

// encodeVariant writes the JSON in one of several valid ways.
func (a *CampaignAuthor) encodeVariant(f history.CampaignFields) []byte {
	text, err := json.Marshal(f)
	if err != nil { // cannot happen: strings and integers
		return nil
	}
	switch a.Random.IntN(4) {
	case 0: // the daemon must ignore unknown fields
		return append([]byte(`{"unknown":{"a":[1,null]},`), text[1:]...)
	case 1:
		return []byte(strings.ReplaceAll(string(text), `,"`, ",\n\t\""))
	}
	return text
}

// malformedValue breaks a campaign in one of the ways that the contract lists.
func (a *CampaignAuthor) malformedValue(now int64) []byte {
	f := a.NewCampaign(now)
	f.Content = fmt.Sprintf("broken %d", f.Created)
	good := string(a.Encode(f))
	cases := []string{
		"not JSON " + f.Campaign, good[:len(good)-1], "[" + good + "]", `"` + f.Campaign + `"`, "null", "",
		strings.Replace(good, `"adv_campaign_owner":`, `"owner":`, 1),
		strings.Replace(good, `"Ivanov Ivan Ivanovich"`, `null`, 1),
		strings.Replace(good, `"Ivanov Ivan Ivanovich"`, `7`, 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprintf(`"%d"`, f.End), 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprintf(`%d.5`, f.End), 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprint(f.Start), 1),
		strings.Replace(good, fmt.Sprint(f.End), fmt.Sprint(f.End*1000), 1),
		strings.Replace(good, `"broken`, `"\u0000broken`, 1),
		strings.Replace(good, `"broken`, "\"\xffbroken", 1),
		string(a.Encode(history.CampaignFields{Restaurant: f.Restaurant, Content: "x", Start: f.Start, End: f.End})),
	}
	return []byte(cases[a.Random.IntN(len(cases))])
}

// Encode writes the message's JSON.
func (a *CampaignAuthor) Encode(f history.CampaignFields) []byte {
	text, err := json.Marshal(f)
	if err != nil { // cannot happen
		return nil
	}
	return text
}
