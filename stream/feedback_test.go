package stream

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/stream/campaign"
	"dinnerbell/stream/operator"
	"dinnerbell/stream/sink"
)

// feedbackDDL is the table of the contract, with replacements and something
// behind its last column.
func feedbackDDL(extra string, replace ...string) string {
	return strings.NewReplacer(replace...).Replace(`CREATE TABLE public.subscribers_feedback (
  id serial4 PRIMARY KEY, restaurant_id text NOT NULL, adv_campaign_id text NOT NULL,
  adv_campaign_content text NOT NULL, adv_campaign_owner text NOT NULL,
  adv_campaign_owner_contact text NOT NULL, adv_campaign_datetime_start int8 NOT NULL,
  adv_campaign_datetime_end int8 NOT NULL, datetime_created int8 NOT NULL,
  client_id text NOT NULL, trigger_datetime_created int4 NOT NULL, feedback varchar NULL`) + extra + `)`
}

// feedbackWorld is a world whose feedback table is another one.
func feedbackWorld(t testing.TB, subs map[string][]string, ddl ...string) *deployment {
	t.Helper()
	w := newDeployment(t, 1, subs)
	w.db.Exec(`DROP TABLE subscribers_feedback`)
	for _, sql := range ddl {
		w.db.Exec(sql)
	}
	if _, err := sink.Setup(t.Context(), w.cfg.Sink); err != nil {
		t.Fatal(err)
	}
	return w
}

// noteRows reads the feedback table whatever its types are.
func (w *deployment) noteSQL() string {
	conn, err := w.cfg.Sink.Connect(w.Context(), "test")
	if err != nil {
		w.Fatal(err)
	}
	defer sink.CloseConn(conn)
	c, err := sink.ReadCatalogue(w.Context(), conn, w.cfg.Sink.Tables())
	if err != nil {
		w.Fatal(err)
	}
	return `SELECT ` + c.Feedback.RowSQL("f") + ` FROM subscribers_feedback f`
}

const (
	uuidCampaign   = "123e4567-e89b-12d3-a456-426614174003"
	uuidRestaurant = "123e4567-e89b-12d3-a456-426614174000"
)

var allTimes = []string{"adv_campaign_datetime_start int8", "adv_campaign_datetime_start T", "adv_campaign_datetime_end int8", "adv_campaign_datetime_end T",
	"datetime_created int8", "datetime_created T", "trigger_datetime_created int4", "trigger_datetime_created T"}

func timesOf(typ string) []string {
	out := slices.Clone(allTimes)
	for i := range out {
		out[i] = strings.ReplaceAll(out[i], " T", " "+typ)
	}
	return out
}

// Tables whose types can carry the values are served: by COPY, by ON CONFLICT
// after an edit, and by resolve, which reads them back.
func TestFeedbackTablesThatDiffer(t *testing.T) {
	t.Parallel()
	for name, ddl := range map[string][]string{
		"timestamps":                    {feedbackDDL("", timesOf("timestamp")...)},
		"timestamps with time zone":     {feedbackDDL("", timesOf("timestamptz(0)")...)},
		"numeric times":                 {feedbackDDL("", timesOf("numeric(12,0)")...)},
		"float times":                   {feedbackDDL("", timesOf("float8")...)},
		"int8 trigger":                  {feedbackDDL("", "trigger_datetime_created int4", "trigger_datetime_created int8")},
		"int4 times":                    {feedbackDDL("", timesOf("int4")...)},
		"uuid ids":                      {feedbackDDL("", "restaurant_id text", "restaurant_id uuid", "adv_campaign_id text", "adv_campaign_id uuid", "client_id text", "client_id uuid")},
		"char ids":                      {feedbackDDL("", "adv_campaign_id text", "adv_campaign_id char(36)", "client_id text", "client_id char(36)")},
		"varchars":                      {feedbackDDL("", "_id text", "_id varchar(36)", "content text", "content varchar(60)")},
		"domains":                       {`CREATE DOMAIN public.client AS uuid CHECK (VALUE IS NOT NULL)`, `CREATE DOMAIN public.moment AS timestamptz`, feedbackDDL("", append(timesOf("public.moment"), "client_id text", "client_id public.client")...)},
		"identity":                      {feedbackDDL("", "id serial4", "id int8 GENERATED ALWAYS AS IDENTITY")},
		"no id, no feedback":            {feedbackDDL("", "id serial4 PRIMARY KEY, ", "", ", feedback varchar NULL", "")},
		"extra columns":                 {feedbackDDL(`, seen timestamptz NOT NULL DEFAULT now(), doubled text GENERATED ALWAYS AS (client_id || client_id) STORED, "Score" int`)},
		"other order":                   {`CREATE TABLE subscribers_feedback (feedback text DEFAULT '', trigger_datetime_created timestamp, client_id varchar, adv_campaign_id varchar, restaurant_id varchar(64), adv_campaign_datetime_end int8, adv_campaign_datetime_start int8, datetime_created int8, adv_campaign_owner_contact text, adv_campaign_owner text, adv_campaign_content text, id bigserial primary key)`},
		"partitioned":                   {strings.ReplaceAll(feedbackDDL("", "PRIMARY KEY", "")+` PARTITION BY HASH (adv_campaign_id)`, "  ", " "), `CREATE TABLE f0 PARTITION OF subscribers_feedback FOR VALUES WITH (MODULUS 2, REMAINDER 0)`, `CREATE TABLE f1 PARTITION OF subscribers_feedback FOR VALUES WITH (MODULUS 2, REMAINDER 1)`},
		"harmless trigger":              {feedbackDDL(""), `CREATE FUNCTION public.stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.adv_campaign_owner := NEW.adv_campaign_owner; RETURN NEW; END'`, `CREATE TRIGGER stamp BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION public.stamp()`},
		"default of their own":          {`CREATE SEQUENCE public.numbers`, `CREATE FUNCTION public.next_id() RETURNS int8 LANGUAGE plpgsql AS $$BEGIN RETURN nextval('numbers'); END$$`, feedbackDDL("", "id serial4", "id int8 DEFAULT public.next_id()")},
		"trigger that writes elsewhere": {`CREATE TABLE public.log (client text)`, feedbackDDL(""), `CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (NEW.client_id); RETURN NULL; END'`, `CREATE TRIGGER note AFTER INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION public.note()`},
		"deferred trigger of the kind":  {`CREATE TABLE public.log (client text)`, feedbackDDL(""), `CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (NEW.client_id); RETURN NULL; END'`, `CREATE CONSTRAINT TRIGGER note AFTER INSERT ON subscribers_feedback DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.note()`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := clients("0000", 40)
			w := feedbackWorld(t, map[string][]string{uuidRestaurant: all}, ddl...)
			w.rowsSQL = w.noteSQL()
			_, stop := w.start()
			c := w.campaign(uuidCampaign, uuidRestaurant)
			w.produce(0, encodeCampaign(c))
			w.expect(map[string][]string{c.ID: all})
			// Somebody else's row goes, and an edit goes by ON CONFLICT.
			w.db.Exec(`DELETE FROM subscribers_feedback WHERE client_id = $1`, all[7])
			stop()
			audited(t, w)
			for _, said := range w.resolveAgain() {
				if strings.Contains(said, "39 notifications") {
					return
				}
			}
			t.Errorf("resolve has not found the 39 rows")
		})
	}
}

// Names with dots, quotes and capitals are served like any other, the triggers in
// such a schema too.
func TestFeedbackTableOfAnyName(t *testing.T) {
	t.Parallel()
	all := clients("c", 40)
	w := newDeployment(t, 1, map[string][]string{"r1": all})
	w.cfg.Sink.Schema, w.cfg.Sink.Table = `a.b "C"`, `Feed.back "x"`
	table := w.cfg.Sink.Tables().Feedback
	if _, err := sink.Setup(t.Context(), w.cfg.Sink); err == nil || !strings.Contains(err.Error(), "README") {
		t.Errorf("set up without the table: %v", err)
	}
	w.db.Exec(`CREATE SCHEMA "a.b ""C"""`)
	w.db.Exec(`CREATE TABLE "a.b ""C""".log (client text)`)
	w.db.Exec(feedbackDDL("", "public.subscribers_feedback", table))
	w.db.Exec(`CREATE FUNCTION "a.b ""C""".note() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO log VALUES (NEW.client_id); RETURN NULL; END'`)
	w.db.Exec(`CREATE TRIGGER note AFTER INSERT ON ` + table + ` FOR EACH ROW EXECUTE FUNCTION "a.b ""C""".note()`)
	for _, sql := range append(sink.SetupSQL(w.cfg.Sink), sink.GrantSQL(w.cfg.Sink, "postgres")...) {
		w.db.Exec(sql)
	}
	if did, err := sink.Setup(t.Context(), w.cfg.Sink); err != nil || !strings.Contains(strings.Join(did, "\n"), "there already ("+w.cfg.Sink.Tables().FeedbackSchema) {
		t.Errorf("set up after the printed statements: %v, %v", did, err)
	}
	w.rowsSQL = `SELECT ` + sink.ContractTable().RowSQL("f") + ` FROM ` + table + ` f`
	w.start()
	c := w.campaign("c1", "r1")
	w.produce(0, encodeCampaign(c))
	w.expect(map[string][]string{c.ID: all})
	if n := w.db.Int(`SELECT count(*) FROM "a.b ""C""".log`); n != 40 {
		t.Errorf("its trigger has noted %d rows, want 40", n)
	}
}

// resolveAgain makes the lane believe that Kafka was rolled back and ships what
// the feedback table has.
func (w *deployment) resolveAgain() []string {
	w.Helper()
	w.db.Exec(`UPDATE dinnerbell.lane SET notifications_ends[1] = 100000`)
	did, err := operator.Resolve(w.Context(), w.cfg.Config, 0, operator.AcceptRepeats)
	if err != nil {
		w.Fatal(err)
	}
	return did
}

func audited(t *testing.T, w *deployment) {
	t.Helper()
	found, err := operator.Audit(t.Context(), w.cfg.Config)
	if err != nil {
		t.Fatal(err)
	}
	missing := 0
	for _, f := range found {
		if !f.OK && strings.Contains(f.What, "1 have no feedback row") {
			missing++
		} else if !f.OK {
			t.Errorf("audit: %s", f.What)
		}
	}
	if missing != 1 {
		t.Errorf("audit has not missed the one row that was deleted: %+v", found)
	}
}

// An edit reaches those who have no row, in tables of other types too.
func TestEditsOfOtherTypes(t *testing.T) {
	t.Parallel()
	all := clients("0000", 40)
	w := feedbackWorld(t, map[string][]string{uuidRestaurant: all},
		feedbackDDL("", append(timesOf("timestamp"), "_id text", "_id uuid")...))
	w.rowsSQL = w.noteSQL()
	w.db.Exec(`SET TimeZone = 'Asia/Tokyo'`)
	w.db.Exec(`INSERT INTO subscribers_feedback (restaurant_id, adv_campaign_id, adv_campaign_content, adv_campaign_owner, adv_campaign_owner_contact,
 adv_campaign_datetime_start, adv_campaign_datetime_end, datetime_created, client_id, trigger_datetime_created, feedback) SELECT $1::uuid, $2::uuid, '', '', '', now(), t.n, now(), $3::uuid, t.n, 'seen' FROM (SELECT now() AS n) AS t`,
		uuidRestaurant, uuidCampaign, all[3])
	w.start()
	c := w.campaign(uuidCampaign, uuidRestaurant)
	w.produce(0, encodeCampaign(c))
	envtest.Until(t, patience, func() error {
		if n := len(w.records()); n != 39 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
	c.Content = "edited"
	w.produce(0, encodeCampaign(c))
	next := w.campaign(uuidRestaurant, uuidRestaurant)
	w.produce(0, encodeCampaign(next))
	envtest.Until(t, patience, func() error {
		if n := len(w.records()); n != 79 {
			return fmt.Errorf("%d records", n)
		}
		return nil
	})
}

// deadLetters reads the dead-letter topic.
func (w *deployment) deadLetters() (out []*operator.DeadLetter) {
	w.Helper()
	if err := operator.ReadDeadLetters(w.Context(), w.cfg.Kafka, slog.New(slog.DiscardHandler), operator.LetterFilter{}, func(d *operator.DeadLetter) error { out = append(out, d); return nil }); err != nil {
		w.Fatal(err)
	}
	return out
}

// A fault that only a row shows is refused by row: a campaign becomes a dead letter, a
// client is left out and named by one, and the messages behind them are delivered.
func TestRefusedRows(t *testing.T) {
	t.Parallel()
	all := clients("0000", 30)
	raise := func(when string) []string {
		return []string{feedbackDDL(""), `CREATE FUNCTION public.guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF ` + when + ` THEN RAISE EXCEPTION ''not this one''; END IF; RETURN NEW; END'`}
	}
	before := `CREATE TRIGGER guard BEFORE INSERT ON subscribers_feedback FOR EACH ROW EXECUTE FUNCTION public.guard()`
	deferred := `CREATE CONSTRAINT TRIGGER guard AFTER INSERT ON subscribers_feedback DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.guard()`
	for name, c := range map[string]struct {
		ddl      []string
		campaign string // reason of the dead letter for the whole campaign
		out      []string
		why      string
	}{
		"foreign key":                   {[]string{`CREATE TABLE users (id text PRIMARY KEY)`, `INSERT INTO users SELECT lpad(to_hex(g), 8, '0') || '-e89b-12d3-a456-426614174000' FROM generate_series(0, 29) g WHERE g NOT IN (4, 17)`, feedbackDDL(`, FOREIGN KEY (client_id) REFERENCES users (id)`)}, "", []string{all[4], all[17]}, "23503"},
		"deferred foreign key":          {[]string{`CREATE TABLE users (id text PRIMARY KEY)`, `INSERT INTO users SELECT lpad(to_hex(g), 8, '0') || '-e89b-12d3-a456-426614174000' FROM generate_series(1, 29) g`, feedbackDDL(`, FOREIGN KEY (client_id) REFERENCES users (id) DEFERRABLE INITIALLY DEFERRED`)}, "", all[:1], "23503"},
		"nobody known":                  {[]string{`CREATE TABLE users (id text PRIMARY KEY)`, feedbackDDL(`, FOREIGN KEY (client_id) REFERENCES users (id)`)}, "", all, "23503"},
		"check on the client":           {[]string{feedbackDDL(`, CHECK (client_id NOT LIKE '%0007-%')`)}, "", all[7:8], "23514"},
		"check on the campaign":         {[]string{feedbackDDL(`, CHECK (adv_campaign_content NOT LIKE '%c1')`)}, "23514", nil, ""},
		"foreign key on the restaurant": {[]string{`CREATE TABLE restaurants (id text PRIMARY KEY)`, `INSERT INTO restaurants VALUES ('r2')`, feedbackDDL(`, FOREIGN KEY (restaurant_id) REFERENCES restaurants (id)`)}, "23503", nil, ""},
		"trigger on the client":         {append(raise(`NEW.client_id LIKE ''%0009-%''`), before), "", all[9:10], "not this one"},
		"trigger on the campaign":       {append(raise(`NEW.adv_campaign_id = ''c1''`), before), "not this one", nil, ""},
		"deferred trigger":              {append(raise(`NEW.client_id LIKE ''%0009-%''`), deferred), "", all[9:10], "not this one"},
		"code of their own":             {append(raise(`NEW.client_id LIKE ''%0009-%''`), `CREATE OR REPLACE FUNCTION public.guard() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.client_id LIKE '%0009-%' THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '45000'; END IF; RETURN NEW; END$$`, before), "", all[9:10], "45000"},
		"row of theirs that is missing": {append(raise(`true`), `CREATE TABLE known (id text)`, `INSERT INTO known SELECT lpad(to_hex(g), 8, '0') || '-e89b-12d3-a456-426614174000' FROM generate_series(1, 29) g`, `CREATE OR REPLACE FUNCTION public.guard() RETURNS trigger LANGUAGE plpgsql AS $$DECLARE found text; BEGIN SELECT id INTO STRICT found FROM known WHERE id = NEW.client_id; RETURN NEW; END$$`, before), "", all[:1], "P0002"},
		"text too long for an index":    {[]string{feedbackDDL(""), `CREATE INDEX ON subscribers_feedback ((CASE WHEN client_id LIKE '%0009-%' THEN repeat(client_id, 90000) END))`}, "", all[9:10], "54000"},
		"another unique index":          {[]string{feedbackDDL(`, UNIQUE (client_id, datetime_created)`), strings.Replace(aRow, "$1", "'"+all[2]+"'", 1)}, "", all[2:3], "23505"},
		"domain":                        {[]string{`CREATE DOMAIN public.client AS text CHECK (VALUE NOT LIKE '%0005-%')`, feedbackDDL("", "client_id text", "client_id public.client")}, "", all[5:6], "23514"},
		"varchar of the owner":          {[]string{feedbackDDL("", "content text", "content varchar(13)")}, "", nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := feedbackWorld(t, map[string][]string{"r1": all, "r2": clients("0000", 30)[20:]}, c.ddl...)
			svc, _ := w.start()
			first := w.campaign("c1", "r1")
			first.Created = 1
			w.produce(0, encodeCampaign(first), encodeCampaign(w.campaign("c2", "r2")))
			keep := func(clients []string) []string {
				return slices.DeleteFunc(slices.Clone(clients), func(id string) bool { return slices.Contains(c.out, id) })
			}
			want := map[string][]string{"c1": keep(all), "c2": keep(w.subs["r2"])}
			if c.campaign != "" {
				delete(want, "c1")
			}
			for id, list := range want {
				if len(list) == 0 {
					delete(want, id)
				}
			}
			envtest.Until(t, patience, func() error { return w.traced(c.campaign, c.out, c.why) })
			w.db.Exec(`DELETE FROM subscribers_feedback WHERE adv_campaign_id = 'c'`)
			w.expect(want)
			if epoch := svc.Status().Lanes[0].Epoch; epoch != 1 {
				t.Errorf("epoch %d: the session has ended", epoch)
			}
			w.checkLanes(svc)
		})
	}
}

// traced checks the dead letters about campaign c1.
func (w *deployment) traced(campaign string, out []string, why string) error {
	var named []string
	refused := false
	for _, d := range w.deadLetters() {
		var v struct {
			ID      string   `json:"adv_campaign_id"`
			Clients []string `json:"client_ids"`
			Owner   string   `json:"adv_campaign_owner"`
		}
		if err := json.Unmarshal(d.Value, &v); err != nil {
			return err
		}
		switch {
		case v.ID != "c1":
		case v.Owner != "":
			if campaign == "" || !strings.Contains(d.Reason, campaign) {
				return fmt.Errorf("campaign refused: %s", d.Reason)
			}
			if d.FromAt != 0 || d.Topic != w.cfg.Kafka.Campaigns {
				return fmt.Errorf("it is said to come from %s offset %d", d.Topic, d.FromAt)
			}
			refused = true
		default:
			named = append(named, v.Clients...)
			if !strings.Contains(d.Reason, why) {
				return fmt.Errorf("left out: %s", d.Reason)
			}
		}
	}
	if refused != (campaign != "") {
		return errors.New("the campaign is no dead letter")
	}
	return sameSet(named, out)
}

// Once the table is mended, `dead-letters retry` delivers a campaign whose rows it refused,
// although the message repeats the accepted one; a second retry notifies nobody twice.
func TestRetryOnceTheTableIsMended(t *testing.T) {
	t.Parallel()
	all := clients("0000", 5)
	w := feedbackWorld(t, map[string][]string{"r1": all}, feedbackDDL(`, CONSTRAINT short CHECK (adv_campaign_content NOT LIKE '%c1')`))
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	envtest.Until(t, patience, func() error { return w.traced("23514", nil, "") })
	w.db.Exec(`ALTER TABLE subscribers_feedback DROP CONSTRAINT short`)
	w.db.Exec(`DELETE FROM subscribers_feedback WHERE adv_campaign_id = 'c'`)
	for range 2 {
		if err := operator.RetryDeadLetters(t.Context(), w.cfg.Kafka, slog.New(slog.DiscardHandler), operator.LetterFilter{}, func(*operator.DeadLetter) bool { return true }, func(r operator.Retried) error {
			if r.SentTo < 0 {
				t.Errorf("not sent: %s", r.Reason)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		w.expect(map[string][]string{"c1": all})
	}
	envtest.Until(t, patience, func() error {
		if next := svc.Status().Lanes[0].NextOffset; next < 3 {
			return fmt.Errorf("read up to %d", next)
		}
		return nil
	})
	w.expect(map[string][]string{"c1": all})
	w.checkLanes(svc)
}

// A replay delivers a campaign to the clients who were left out, once the table takes
// their rows; a retry of the letter that names them says so.
func TestReplayReachesLeftOutClients(t *testing.T) {
	t.Parallel()
	all := clients("0000", 5)
	w := feedbackWorld(t, map[string][]string{"r1": all}, feedbackDDL(`, CONSTRAINT known CHECK (client_id NOT LIKE '%0002-%')`))
	svc, _ := w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	envtest.Until(t, patience, func() error { return w.traced("", all[2:3], "23514") })
	w.db.Exec(`ALTER TABLE subscribers_feedback DROP CONSTRAINT known`)
	w.db.Exec(`DELETE FROM subscribers_feedback WHERE adv_campaign_id = 'c'`)
	var reason string
	if err := operator.RetryDeadLetters(t.Context(), w.cfg.Kafka, slog.New(slog.DiscardHandler), operator.LetterFilter{}, func(*operator.DeadLetter) bool { return true }, func(r operator.Retried) error {
		reason = r.Reason
		return nil
	}); err != nil || !strings.Contains(reason, "dinnerbell replay --from TIME reaches them") {
		t.Errorf("retry: %q, %v", reason, err)
	}
	if _, err := svc.Replay(t.Context(), ReplayRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	w.expect(map[string][]string{"c1": all})
	w.checkLanes(svc)
}

// Ids that the table cannot carry are found before they are sent.
func TestValuesThatATypeCannotCarry(t *testing.T) {
	t.Parallel()
	upper := strings.ToUpper("abcdef00-e89b-12d3-a456-426614174000")
	good := clients("0000", 5)
	w := feedbackWorld(t, map[string][]string{uuidRestaurant: append(slices.Clone(good), upper, "not-a-uuid")},
		feedbackDDL("", append(timesOf("int4"), "_id text", "_id uuid", "owner text", "owner varchar(6)")...))
	w.start()
	bad := []campaign.Campaign{w.campaign(upper, uuidRestaurant), w.campaign(uuidCampaign, uuidRestaurant), w.campaign(uuidCampaign, uuidRestaurant)}
	bad[1].Owner = "öwners7"
	bad[2].End = 1 << 31
	for _, c := range bad {
		w.produce(0, encodeCampaign(c))
	}
	c := w.campaign(uuidCampaign, uuidRestaurant)
	c.Owner = "öwners"
	w.produce(0, encodeCampaign(c))
	w.expect(map[string][]string{c.ID: good})
	envtest.Until(t, patience, func() error {
		dead := w.deadLetters()
		if len(dead) != 4 {
			return fmt.Errorf("%d dead letters", len(dead))
		}
		for i, want := range []string{"adv_campaign_id \"ABCDEF00-", "adv_campaign_owner has 7 characters", "adv_campaign_datetime_end 2147483648 does not fit"} {
			if !strings.Contains(dead[i].Reason, want) || string(dead[i].Value) != string(encodeCampaign(bad[i])) {
				return fmt.Errorf("dead letter %d: %s", i, dead[i].Reason)
			}
		}
		if d := dead[3]; !strings.Contains(d.Reason, "1 clients are left out") && !strings.Contains(d.Reason, "left out") {
			return fmt.Errorf("clients: %s", d.Reason)
		}
		return nil
	})
}

// A column that gets another type while the lane runs is written right, and so is
// a table that lost its unique index: not at all until it is back.
func TestTableAlteredWhileTheLaneRuns(t *testing.T) {
	t.Parallel()
	w := newDeployment(t, 1, map[string][]string{"r1": clients("0000", 20)})
	w.start()
	w.produce(0, encodeCampaign(w.campaign("c1", "r1")))
	want := map[string][]string{"c1": w.subs["r1"]}
	w.expect(want)
	w.db.Exec(`ALTER TABLE subscribers_feedback ALTER adv_campaign_datetime_start TYPE timestamptz USING to_timestamp(adv_campaign_datetime_start), ALTER client_id TYPE uuid USING client_id::uuid`)
	w.rowsSQL = w.noteSQL()
	w.produce(0, encodeCampaign(w.campaign("c2", "r1")))
	want["c2"] = w.subs["r1"]
	w.expect(want)
	w.db.Exec(`DROP INDEX subscribers_feedback_adv_campaign_id_client_id_idx`)
	w.produce(0, encodeCampaign(w.campaign("c3", "r1")))
	w.expect(want)
	if _, err := sink.Setup(t.Context(), w.cfg.Sink); err != nil {
		t.Fatal(err)
	}
	want["c3"] = w.subs["r1"]
	w.expect(want)
}
