package main

import (
	"context"
	"fmt"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
)

// measureFanout delivers one campaign with a large audience through one lane.
// Beside the daemon run binary COPY, transactional produce of the same records,
// and the consumer written by hand; the CPU time of each is measured as well.
func (st *stage) measureFanout(ctx context.Context) error {
	field := []contestant{
		{name: "dinnerbell", Contender: st.dinnerbell},
		{name: "copy", Contender: st.copyLimit},
		{name: "by_hand", Contender: st.byhand},
		{name: "produce", Contender: st.produceLimit()},
	}
	if err := st.producer.CreateTopics(ctx, topicProduceLimit); err != nil {
		return err
	}
	err := st.runTournament(ctx, "fanout", st.opts.runs, field, func() (*contender.CampaignLoad, error) {
		return contender.NewLoad(&st.people, deployment.KindLarge, 1, 1, true)
	})
	if err != nil {
		return err
	}
	us, limit, hand, produce := &field[0], &field[1], &field[2], &field[3]
	st.report.Add("fanout_throughput_"+st.kind, "notifications/s", us.rates(), "copy", limit.rates()...)
	st.report.Add("fanout_throughput_of_produce_"+st.kind, "notifications/s", us.rates(), "produce", produce.rates()...)
	st.report.Add("by_hand_throughput_"+st.kind, "notifications/s", hand.rates(), "dinnerbell", us.rates()...)
	st.report.Add("cpu_daemon_"+st.kind, "s/million", us.cpu(), "by_hand", hand.cpu()...)
	st.report.Add("cpu_postgres_"+st.kind, "s/million", us.postgresCPU(), "copy", limit.postgresCPU()...)
	st.report.Add("by_hand_cpu_postgres_"+st.kind, "s/million", hand.postgresCPU(), "copy", limit.postgresCPU()...)
	return nil
}

const topicProduceLimit = "bench.produce"

func (st *stage) produceLimit() *contender.ProduceLimit {
	return &contender.ProduceLimit{Broker: st.broker, Topic: topicProduceLimit}
}

// measureLanes delivers two campaigns on two lanes at once, beside COPY through
// two connections, and on one lane, which shows the gain of the second lane.
func (st *stage) measureLanes(ctx context.Context) error {
	one := []contestant{{name: "dinnerbell, one lane", Contender: st.dinnerbell}}
	two := []contestant{{name: "dinnerbell, two lanes", Contender: st.dinnerbell}, {name: "copy, two connections", Contender: st.copyLimit}}
	for range st.opts.runs {
		if err := st.runTournament(ctx, "lanes", 1, one, func() (*contender.CampaignLoad, error) {
			return contender.NewLoad(&st.people, deployment.KindLarge, 2, 1, false)
		}); err != nil {
			return err
		}
		if err := st.runTournament(ctx, "lanes", 1, two, func() (*contender.CampaignLoad, error) {
			return contender.NewLoad(&st.people, deployment.KindLarge, 2, 2, true)
		}); err != nil {
			return err
		}
	}
	st.report.Add("fanout_throughput_2lanes_"+st.kind, "notifications/s", two[0].rates(), "copy_2", two[1].rates()...)
	st.report.Add("lanes_"+st.kind, "notifications/s", two[0].rates(), "one_lane", one[0].rates()...)
	return nil
}

// measureSmall delivers many campaigns with small audiences at once. Each round
// has as many notifications as a large campaign, or a third where audiences are
// ten.
func (st *stage) measureSmall(ctx context.Context) error {
	for _, c := range []struct {
		kind     string
		audience int
		n        int
	}{
		{deployment.KindHundred, 100, st.opts.audience / 100}, {deployment.KindTen, 10, st.opts.audience / 30},
	} {
		field := []contestant{
			{name: "dinnerbell", Contender: st.dinnerbell},
			{name: "copy", Contender: st.copyLimit},
			{name: "by_hand", Contender: st.byhand},
		}
		what := fmt.Sprintf("audience %d", c.audience)
		err := st.runTournament(ctx, what, st.opts.runs, field, func() (*contender.CampaignLoad, error) { return contender.NewLoad(&st.people, c.kind, c.n, 1, true) })
		if err != nil {
			return err
		}
		suffix := fmt.Sprintf("_%d", c.audience)
		st.report.Add("small_fanout"+suffix, "notifications/s", field[0].rates(), "copy", field[1].rates()...)
		st.report.Add("by_hand_small"+suffix, "notifications/s", field[2].rates(), "dinnerbell", field[0].rates()...)
		st.report.Add("cpu_daemon_small"+suffix, "s/million", field[0].cpu(), "by_hand", field[2].cpu()...)
		st.report.Add("cpu_postgres_small"+suffix, "s/million", field[0].postgresCPU(), "copy", field[1].postgresCPU()...)
	}
	return nil
}
