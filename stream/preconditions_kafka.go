package stream

import (
	"context"
	"fmt"

	"dinnerbell/internal/precondition"
)

// kafkaPreconditions are those of the cluster and its topics.
var kafkaPreconditions = []precondition.Check[*facts]{
	{Name: "kafka.topics", At: precondition.AtStart | precondition.AtSession, Read: readTopicsExist},
	{Name: "kafka.progress.partitions", At: precondition.AtStart | precondition.AtSession, Read: readProgressPartitions},
}

// readTopicsExist looks for the four topics.
func readTopicsExist(_ context.Context, f *facts) ([]precondition.Finding, error) {
	var found []precondition.Finding
	for _, topic := range f.cfg.Kafka.topics() {
		if err := f.cluster.topics[topic].Err; err != nil {
			found = append(found, precondition.Finding{Level: precondition.Fail, Object: "topic " + topic,
				Found: err.Error(), Effect: "no lane can work", Fix: "dinnerbell setup"})
		}
	}
	return found, nil
}

// readProgressPartitions compares the partition counts: each lane has its
// progress in the partition of its own number.
func readProgressPartitions(_ context.Context, f *facts) ([]precondition.Finding, error) {
	k := f.cfg.Kafka
	lanes, have := len(f.cluster.topics[k.Campaigns].Partitions), len(f.cluster.topics[k.Progress].Partitions)
	if have >= lanes {
		return nil, nil
	}
	return []precondition.Finding{{Level: precondition.Fail, Object: "topic " + k.Progress,
		Found:  fmt.Sprintf("it has %d partitions, fewer than the %d of topic %s", have, lanes, k.Campaigns),
		Effect: "the lanes beyond have no progress",
		Fix:    "dinnerbell setup"}}, nil
}
