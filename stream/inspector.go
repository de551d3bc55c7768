package stream

import (
	"dinnerbell/state"
)

// inspector is what every message of the campaigns topic is looked at with before
// it is decided: the parser, the look-up in the campaign table, and the clients
// who have its campaign.
type inspector struct {
	parser    messageParser
	lookup    campaignLookup
	delivered *deliveredCache
}

// newInspector makes the inspector of a lane, or of none (-1).
func newInspector(cfg ClaimConfig, lane int32, table *feedbackTable, limits topicLimits, reader querier, store *state.Store) *inspector {
	parser := newMessageParser(cfg.Kafka, limits, table)
	return &inspector{
		parser:    parser,
		lookup:    campaignLookup{lane: lane, t: cfg.Sink.tables(), reader: reader, table: table, letters: parser.letters, timeout: cfg.SinkTimeout},
		delivered: &deliveredCache{lane: lane, store: store, reader: reader, table: table, timeout: 10 * cfg.SinkTimeout, log: cfg.Logger},
	}
}
