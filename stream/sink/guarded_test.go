package sink

import (
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"dinnerbell/internal/pgsession"
	"dinnerbell/internal/testenv/envtest"
	"dinnerbell/state/id"
)

// newGuardedInsertion returns a database with the daemon's tables, on which ddl ran, and an
// insertion into it over a connection with the settings pins, which the end of the test closes.
func newGuardedInsertion(t *testing.T, ddl string, pins ...pgsession.Setting) (*envtest.DB, *Insertion) {
	t.Helper()
	db := envtest.Database(t)
	cfg := Config{URL: func() (string, error) { return db.URL, nil }, Schema: "public", Table: "subscribers_feedback", DaemonSchema: "dinnerbell", Pins: pins}
	if _, err := Setup(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	db.Exec(ddl)
	conn, err := cfg.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { CloseConn(conn) })
	found, err := ReadCatalogue(t.Context(), conn, cfg.Tables())
	if err != nil {
		t.Fatal(err)
	}
	return db, &Insertion{Conn: conn, Tables: cfg.Tables(), Table: found.Feedback, Campaign: exampleCampaign(), Trigger: 7, Guarded: true, Taken: true}
}

// A guarded insertion writes exactly the rows that the table takes and has no row of, and
// names the others, with a bounded number of tries: few if few rows are refused, one for
// each row and a little more if all are.
func TestGuardedInsertionFindsRefusedRows(t *testing.T) {
	t.Parallel()
	const n = 512
	all := listClients("0000", n)
	index := `(('x' || substr(client_id, 1, 8))::bit(32)::int)`
	for name, c := range map[string]struct {
		check   string
		refused func(i int) bool
		tries   int
	}{
		"none":              {`true`, func(int) bool { return false }, 1},
		"one":               {index + ` <> 77`, func(i int) bool { return i == 77 }, 1 + n/chunkRows + chunkRows},
		"every hundredth":   {index + ` % 100 <> 50`, func(i int) bool { return i%100 == 50 }, 1 + n/chunkRows + 5*chunkRows},
		"every second":      {index + ` % 2 = 0`, func(i int) bool { return i%2 == 1 }, 1 + n/chunkRows + n},
		"all":               {index + ` < 0`, func(int) bool { return true }, 1 + n/chunkRows + n},
		"the campaign's id": {`adv_campaign_id <> 'c1'`, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, base := newGuardedInsertion(t, `ALTER TABLE subscribers_feedback ADD CONSTRAINT choosy CHECK (`+c.check+`) NOT VALID`)
			insert := func(clients []string) *Insertion {
				list := &id.List{}
				for _, text := range clients {
					list.Append(packID(t, text))
				}
				in := &Insertion{Conn: base.Conn, Tables: base.Tables, Table: base.Table, Campaign: base.Campaign, Trigger: base.Trigger, Guarded: true, CountOwn: true}
				if err := pgx.BeginFunc(t.Context(), base.Conn, func(pgx.Tx) error { return in.Write(t.Context(), list) }); err != nil {
					t.Fatal(err)
				}
				return in
			}
			in := insert(all)
			if in.tries > c.tries {
				t.Errorf("%d tries, want %d at most", in.tries, c.tries)
			}
			if c.refused == nil {
				if in.Refused == "" || in.Written.Len() > 0 || len(in.LeftOut) > 0 {
					t.Errorf("refused: %q, %d written", in.Refused, in.Written.Len())
				}
				return
			}
			var taken, refused []string
			for i, text := range all {
				if c.refused(i) {
					refused = append(refused, text)
				} else {
					taken = append(taken, text)
				}
			}
			check := func(what string, got, want []string) {
				t.Helper()
				if slices.Sort(got); !slices.Equal(got, want) {
					t.Errorf("%s: %d clients, want %d", what, len(got), len(want))
				}
			}
			var written, leftOut []string
			for i := range in.Written.Len() {
				written = append(written, in.Written.At(i).Text())
			}
			for _, list := range in.LeftOut {
				leftOut = append(leftOut, list...)
			}
			check("written", written, taken)
			check("left out", leftOut, refused)
			stored, err := QueryTexts(t.Context(), base.Conn, `SELECT client_id FROM public.subscribers_feedback`)
			if err != nil {
				t.Fatal(err)
			}
			check("stored", stored, taken)
			// Again: everybody has a row already, or is refused once more.
			again := insert(all)
			if again.Written.Len() != 0 || again.Misses != int64(len(taken)) || again.Own != again.Misses {
				t.Errorf("again: %d written, %d have a row, %d of them from the campaign", again.Written.Len(), again.Misses, again.Own)
			}
		})
	}
}
