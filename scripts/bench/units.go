package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"dinnerbell/scripts/bench/contender"
	"dinnerbell/scripts/bench/deployment"
	"dinnerbell/scripts/bench/report"
	"dinnerbell/scripts/bench/usage"
)

// unitCosts is the input of `dinnerbell capacity --units`, which documents the
// fields.
type unitCosts struct {
	Machine      string  `json:"machine"`
	Measured     string  `json:"measured"`
	Cores        float64 `json:"cores"`
	Notification cost    `json:"notification"`
	Scattered    cost    `json:"scattered"`
	Campaign     cost    `json:"campaign"`
	Texts        float64 `json:"texts"`
	LaneRate     float64 `json:"lane_rate"`
	Change       cost    `json:"change"`
	ChangeRate   float64 `json:"change_rate"`
	Subscription struct {
		Disk        float64 `json:"disk"`
		RebuildRate float64 `json:"rebuild_rate"`
		Memory      float64 `json:"memory"`
	} `json:"subscription"`
}

type cost struct {
	Daemon   float64 `json:"daemon"`
	Postgres float64 `json:"postgres"`
	Broker   float64 `json:"broker"`
	WAL      float64 `json:"wal"`
	Table    float64 `json:"table"`
	Kafka    float64 `json:"kafka"`
}

// meters are the readings before or after a delivery.
type meters struct {
	daemon, postgres, broker, wal, table, kafka float64
}

func (st *stage) readMeters(ctx context.Context) (m meters, err error) {
	if m.daemon, err = usage.ProcessSeconds(st.deployment.Daemon.PID()); err != nil {
		return m, err
	}
	if m.postgres, err = usage.TreeSeconds(st.servers.Postgres.PID()); err != nil {
		return m, err
	}
	broker, dir := st.servers.Kfake.PID, filepath.Join(st.servers.Dir, "kfake")
	if st.kind == deployment.KindKafka {
		broker, dir = st.servers.Kafka.PID, filepath.Join(st.servers.Dir, "kafka")
	}
	if m.broker, err = usage.ProcessSeconds(broker()); err != nil {
		return m, err
	}
	if m.kafka, err = usage.DiskUsage(dir); err != nil {
		return m, err
	}
	err = st.deployment.Database.Conn.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::float8, pg_total_relation_size('public.subscribers_feedback')::float8`).Scan(&m.wal, &m.table)
	return m, err
}

// costSince returns the difference per notification: CPU seconds per million,
// bytes for one.
func (m meters) costSince(before meters, notifications int) cost {
	n := float64(notifications)
	return cost{
		Daemon:   (m.daemon - before.daemon) / n * 1e6,
		Postgres: (m.postgres - before.postgres) / n * 1e6,
		Broker:   (m.broker - before.broker) / n * 1e6,
		WAL:      (m.wal - before.wal) / n,
		Table:    (m.table - before.table) / n,
		Kafka:    (m.kafka - before.kafka) / n,
	}
}

// measureCost returns the median cost of one kind of load over all runs.
func (st *stage) measureCost(ctx context.Context, kind string, n int) (c cost, rate float64, texts int, err error) {
	var all []cost
	var rates []float64
	for range st.opts.runs {
		l, err := contender.NewLoad(&st.people, kind, n, 1, false)
		if err != nil {
			return c, 0, 0, err
		}
		if err := st.dinnerbell.Prepare(ctx, l); err != nil {
			return c, 0, 0, err
		}
		before, err := st.readMeters(ctx)
		if err != nil {
			return c, 0, 0, err
		}
		began := time.Now()
		if err := st.dinnerbell.Deliver(ctx, l); err != nil {
			return c, 0, 0, err
		}
		took := time.Since(began).Seconds()
		after, err := st.readMeters(ctx)
		if err != nil {
			return c, 0, 0, err
		}
		if err := st.dinnerbell.Settle(ctx, l); err != nil {
			return c, 0, 0, err
		}
		all, rates = append(all, after.costSince(before, l.Total)), append(rates, float64(l.Total)/took)
		texts = len(l.Campaigns[0].Content) + len(l.Campaigns[0].Owner) + len(l.Campaigns[0].Contact)
	}
	mid := func(f func(cost) float64) float64 { return report.Median(valuesOf(all, f)) }
	return cost{
		Daemon: mid(func(c cost) float64 { return c.Daemon }), Postgres: mid(func(c cost) float64 { return c.Postgres }),
		Broker: mid(func(c cost) float64 { return c.Broker }), WAL: mid(func(c cost) float64 { return c.WAL }),
		Table: mid(func(c cost) float64 { return c.Table }), Kafka: mid(func(c cost) float64 { return c.Kafka }),
	}, report.Median(rates), texts, nil
}

// measureUnits measures unit costs on this broker, writes them next to the
// results, lets `dinnerbell capacity` predict from them, and compares the
// predictions with the measurements of other parts. The extra cost of small
// audiences, per notification and per campaign, follows from the audiences of
// 100 and of 10.
func (st *stage) measureUnits(ctx context.Context) error {
	const hundred, ten = 100, 10
	large, rate, texts, err := st.measureCost(ctx, deployment.KindLarge, 1)
	if err != nil {
		return err
	}
	small, _, _, err := st.measureCost(ctx, deployment.KindHundred, st.opts.audience/hundred)
	if err != nil {
		return err
	}
	tiny, _, _, err := st.measureCost(ctx, deployment.KindTen, st.opts.audience/30)
	if err != nil {
		return err
	}
	u := unitCosts{
		Machine:  fmt.Sprintf("%d cores, everything on one machine, broker %s", runtime.NumCPU(), st.kind),
		Measured: time.Now().Format(time.DateOnly), Cores: float64(runtime.NumCPU()), Texts: float64(texts),
		Notification: large, LaneRate: rate,
	}
	campaign := func(tiny, small float64) float64 { return max(0, tiny-small) / (1./ten - 1./hundred) }
	u.Campaign = combineCosts(tiny, small, campaign)
	u.Scattered = combineCosts(combineCosts(small, large, func(small, large float64) float64 { return small - large }), u.Campaign,
		func(more, campaign float64) float64 { return max(0, more-campaign/hundred) })
	if u.Change, u.ChangeRate, err = st.measureChangeCost(ctx); err != nil {
		return err
	}
	u.Subscription.Disk = st.report.Median("disk")
	u.Subscription.RebuildRate = st.report.Median("rebuild")
	u.Subscription.Memory = 1e6 * st.report.Median("memory_peak")
	for _, c := range []struct {
		name  string
		value float64
		unit  string
	}{
		{"unit_wal", large.WAL, "B/notification"}, {"unit_table", large.Table, "B/notification"}, {"unit_kafka", large.Kafka, "B/notification"},
		{"unit_cpu_broker", large.Broker, "s/million"}, {"unit_change_daemon", u.Change.Daemon, "s/million"}, {"unit_change_postgres", u.Change.Postgres, "s/million"},
	} {
		st.report.Add(c.name+"_"+st.kind, c.unit, []float64{c.value}, "")
	}
	return st.comparePredictions(ctx, &u)
}

// combineCosts applies f to each part of two costs.
func combineCosts(a, b cost, f func(a, b float64) float64) cost {
	return cost{
		Daemon: f(a.Daemon, b.Daemon), Postgres: f(a.Postgres, b.Postgres), Broker: f(a.Broker, b.Broker),
		WAL: f(a.WAL, b.WAL), Table: f(a.Table, b.Table), Kafka: f(a.Kafka, b.Kafka),
	}
}

// measureChangeCost lets the daemon catch up with single-row transactions.
func (st *stage) measureChangeCost(ctx context.Context) (c cost, rate float64, err error) {
	n := st.opts.transactions
	if err := st.deployment.Start(ctx); err != nil {
		return c, 0, err
	}
	if err := st.deployment.Stop(); err != nil {
		return c, 0, err
	}
	var before, after float64
	wal := `SELECT (pg_current_wal_insert_lsn() - '0/0')::float8`
	if err := st.deployment.Database.Conn.QueryRow(ctx, wal).Scan(&before); err != nil {
		return c, 0, err
	}
	if err := st.commitSingles(ctx, n); err != nil {
		return c, 0, err
	}
	if err := st.deployment.Database.Conn.QueryRow(ctx, wal).Scan(&after); err != nil {
		return c, 0, err
	}
	end, err := deployment.WriteMark(ctx, st.deployment.Database)
	if err != nil {
		return c, 0, err
	}
	postgres, err := usage.TreeSeconds(st.servers.Postgres.PID())
	if err != nil {
		return c, 0, err
	}
	began := time.Now()
	if err := st.deployment.Launch(); err != nil {
		return c, 0, err
	}
	if err := st.deployment.AwaitApplied(ctx, end); err != nil {
		return c, 0, err
	}
	rate = float64(n) / time.Since(began).Seconds()
	own, err := usage.ProcessSeconds(st.deployment.Daemon.PID())
	if err != nil {
		return c, 0, err
	}
	postgresAfter, err := usage.TreeSeconds(st.servers.Postgres.PID())
	if err != nil {
		return c, 0, err
	}
	per := float64(n) / 1e6
	c = cost{Daemon: own / per, Postgres: (postgresAfter - postgres) / per, WAL: (after - before) / float64(n)}
	return c, rate, st.deployment.Database.Exec(ctx, `DELETE FROM public.subscribers_restaurants WHERE restaurant_id LIKE 'drain-%'`)
}

// comparePredictions runs the command as a user would.
func (st *stage) comparePredictions(ctx context.Context, u *unitCosts) error {
	text, err := json.MarshalIndent(u, "", "  ")
	if err != nil {
		return fmt.Errorf("encode unit costs: %w", err)
	}
	path := filepath.Join(filepath.Dir(st.opts.json), "units.json")
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("make folder for unit costs: %w", err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write unit costs: %w", err)
	}
	for _, p := range []struct {
		measured        string
		lanes, audience int
	}{
		{"fanout_throughput_" + st.kind, 1, st.opts.audience},
		{"fanout_throughput_2lanes_" + st.kind, 2, st.opts.audience},
		{"small_fanout_100", 1, 100},
		{"small_fanout_10", 1, 10},
	} {
		measured := st.report.Median(p.measured)
		if measured == 0 {
			continue // the run did not include this part
		}
		cmd := exec.CommandContext(ctx, st.opts.binary, "capacity", "--units", path,
			"--one-machine", strconv.Itoa(p.lanes), "--audience", strconv.Itoa(p.audience))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return fmt.Errorf("run dinnerbell capacity: %w: %s", err, stderr.String())
		}
		predicted, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		if err != nil {
			return fmt.Errorf("read prediction: %w", err)
		}
		st.report.Add("predicted_"+p.measured, "notifications/s", []float64{predicted}, "measured", measured)
	}
	return nil
}
