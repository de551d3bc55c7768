package main

import (
	"context"
	"fmt"
)

// fanout: one campaign with a large audience, through one lane. Beside it
// binary COPY, transactional produce of the same records, and the consumer
// written by hand; CPU time of each.
func (st *stage) fanout(ctx context.Context) error {
	field := []entry{
		{name: "dinnerbell", contender: st.ours},
		{name: "copy", contender: st.copy},
		{name: "by_hand", contender: st.byhand},
		{name: "produce", contender: st.produceLimit()},
	}
	if err := st.producer.createTopics(ctx, topicProduceLimit); err != nil {
		return err
	}
	err := st.tournament(ctx, "fanout", st.opts.runs, field, func() (*load, error) {
		return newLoad(&st.people, kindLarge, 1, 1, true)
	})
	if err != nil {
		return err
	}
	us, limit, hand, produce := &field[0], &field[1], &field[2], &field[3]
	st.report.add("fanout_throughput_"+st.kind, "notifications/s", us.rates(), "copy", limit.rates()...)
	st.report.add("fanout_throughput_of_produce_"+st.kind, "notifications/s", us.rates(), "produce", produce.rates()...)
	st.report.add("by_hand_throughput_"+st.kind, "notifications/s", hand.rates(), "dinnerbell", us.rates()...)
	st.report.add("cpu_daemon_"+st.kind, "s/million", us.cpu(), "by_hand", hand.cpu()...)
	st.report.add("cpu_postgres_"+st.kind, "s/million", us.postgresCPU(), "copy", limit.postgresCPU()...)
	st.report.add("by_hand_cpu_postgres_"+st.kind, "s/million", hand.postgresCPU(), "copy", limit.postgresCPU()...)
	return nil
}

const topicProduceLimit = "bench.produce"

func (st *stage) produceLimit() *produceLimit {
	return &produceLimit{broker: st.broker, topic: topicProduceLimit}
}

// lanes: the same with two campaigns on two lanes at once, beside COPY through
// two connections, and what the second lane brings.
func (st *stage) lanes(ctx context.Context) error {
	one := []entry{{name: "dinnerbell, one lane", contender: st.ours}}
	two := []entry{{name: "dinnerbell, two lanes", contender: st.ours}, {name: "copy, two connections", contender: st.copy}}
	for range st.opts.runs {
		if err := st.tournament(ctx, "lanes", 1, one, func() (*load, error) { return newLoad(&st.people, kindLarge, 2, 1, false) }); err != nil {
			return err
		}
		if err := st.tournament(ctx, "lanes", 1, two, func() (*load, error) { return newLoad(&st.people, kindLarge, 2, 2, true) }); err != nil {
			return err
		}
	}
	st.report.add("fanout_throughput_2lanes_"+st.kind, "notifications/s", two[0].rates(), "copy_2", two[1].rates()...)
	st.report.add("lanes_"+st.kind, "notifications/s", two[0].rates(), "one_lane", one[0].rates()...)
	return nil
}

// small: many campaigns with small audiences at once. Each round has as many
// notifications as a large campaign, or a third of it where audiences are ten.
func (st *stage) small(ctx context.Context) error {
	for _, c := range []struct {
		kind     string
		audience int
		n        int
	}{
		{kindHundred, 100, st.opts.audience / 100}, {kindTen, 10, st.opts.audience / 30},
	} {
		field := []entry{
			{name: "dinnerbell", contender: st.ours},
			{name: "copy", contender: st.copy},
			{name: "by_hand", contender: st.byhand},
		}
		what := fmt.Sprintf("audience %d", c.audience)
		err := st.tournament(ctx, what, st.opts.runs, field, func() (*load, error) { return newLoad(&st.people, c.kind, c.n, 1, true) })
		if err != nil {
			return err
		}
		suffix := fmt.Sprintf("_%d", c.audience)
		st.report.add("small_fanout"+suffix, "notifications/s", field[0].rates(), "copy", field[1].rates()...)
		st.report.add("by_hand_small"+suffix, "notifications/s", field[2].rates(), "dinnerbell", field[0].rates()...)
		st.report.add("cpu_daemon_small"+suffix, "s/million", field[0].cpu(), "by_hand", field[2].cpu()...)
		st.report.add("cpu_postgres_small"+suffix, "s/million", field[0].postgresCPU(), "copy", field[1].postgresCPU()...)
	}
	return nil
}
