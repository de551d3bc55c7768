package stream

import (
	"dinnerbell/state"
)

// messageInspector is what every message of the campaigns topic is looked at with before
// it is decided: the parser, the look-up in the campaign table, and the clients
// who have its campaign.
type messageInspector struct {
	parser    messageParser
	lookup    campaignLookup
	delivered *deliveredCache
}

// newMessageInspector makes the inspector of a lane, or of none (-1).
func newMessageInspector(cfg ClaimConfig, lane int32, table *feedbackTable, limits topicLimits, reader querier, store *state.Store) *messageInspector {
	parser := newMessageParser(cfg.Kafka, limits, table)
	return &messageInspector{
		parser:    parser,
		lookup:    campaignLookup{lane: lane, t: cfg.Sink.tables(), reader: reader, table: table, letters: parser.letters, timeout: cfg.SinkTimeout},
		delivered: &deliveredCache{lane: lane, store: store, reader: reader, table: table, timeout: 10 * cfg.SinkTimeout, log: cfg.Logger},
	}
}
