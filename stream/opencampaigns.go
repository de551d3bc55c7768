package stream

import (
	"context"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"dinnerbell/stream/sink"
)

// OpenCampaigns lists the campaigns of this service's lanes that wait: for their start,
// for fresh subscriptions, or for an operator; at most limit of each state and lane, the
// next ones first. It reads the sink once, on a connection of the lanes' readers.
func (s *Service) OpenCampaigns(ctx context.Context, limit int) ([]sink.OpenCampaign, error) {
	lanes := slices.Sorted(maps.Keys(s.runningLanes()))
	if len(lanes) == 0 {
		return nil, nil
	}
	reader := s.readers.Open()
	defer reader.Close()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.SinkTimeout)
	defer cancel()
	return s.cfg.Sink.Tables().ReadOpen(ctx, reader, lanes, limit)
}

// titleLength bounds a campaign's title, in bytes.
const titleLength = 120

// titleOf returns the beginning of a campaign's content, as one line. It does not hold
// the content's memory.
func titleOf(content string) string {
	if len(content) <= titleLength {
		return strings.Clone(content)
	}
	end := titleLength
	for end > 0 && !utf8.RuneStart(content[end]) {
		end--
	}
	return content[:end] + "…"
}
