package cdc

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"dinnerbell/internal/testenv"
	"dinnerbell/internal/testenv/envtest"
)

// encoded moves the deployment to a database of an encoding, with a column of somebody
// else's in the table.
func (r *deployment) encoded(encoding string) *deployment {
	r.t.Helper()
	outer, slot, name := r.Pool, r.cfg.Slot, strings.ToLower(encoding)+"_"+r.Name
	r.Exec(`CREATE DATABASE ` + name + ` ENCODING '` + encoding + `' LOCALE 'C' TEMPLATE template0`)
	r.URL = strings.Replace(r.URL, "/"+r.Name, "/"+name, 1)
	pool, err := pgxpool.New(r.t.Context(), r.URL)
	if err != nil {
		r.t.Fatal(err)
	}
	r.Pool, r.Name = pool, name
	r.t.Cleanup(func() {
		_ = r.halt()
		pool.Close()
		ctx := context.Background()
		envtest.Until(r.t, patience, func() error { // its walsender may be about to end
			_, err := outer.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
			return err
		})
		if _, err := outer.Exec(ctx, `DROP DATABASE `+name+` WITH (FORCE)`); err != nil {
			r.t.Error(err)
		}
	})
	r.Exec(testenv.ContractTables)
	r.Exec(`ALTER TABLE subscribers_restaurants ADD note text`)
	r.role = r.RoleURL("source.url")
	return r
}

// Ids of every encoding come as UTF-8, by snapshot and by stream.
func TestEncodings(t *testing.T) {
	t.Parallel()
	for encoding, c := range map[string]struct{ bytes, text string }{
		"UTF8":      {`\xc3a9c3a8`, "éè"},
		"LATIN1":    {`\xe9e8`, "éè"},
		"WIN1251":   {`\xcfd0`, "ПР"},
		"EUC_JP":    {`\xa4a2a4a4`, "あい"},
		"SQL_ASCII": {`\xc3a9c3a8`, "éè"},
	} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).encoded(encoding).setup()
			text := `convert_from('` + c.bytes + `', '` + encoding + `')`
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES (` + text + `, 'r'), ('plain', ` + text + `)`)
			r.start()
			r.barrier()
			r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES (` + text + ` || '2', 'r'), ('plain2', ` + text + `)`)
			r.barrier()
			if got, want := r.clients("r"), []string{c.text, c.text + "2"}; !slices.Equal(got, want) {
				t.Errorf("clients are %q, want %q", got, want)
			}
			if got, want := r.clients(c.text), []string{"plain", "plain2"}; !slices.Equal(got, want) {
				t.Errorf("clients of the restaurant are %q, want %q", got, want)
			}
		})
	}
}

// A database of SQL_ASCII holds bytes that are not UTF-8. In columns of others
// they are of no interest; a key may have them; a client or restaurant is left out
// and counted. Neither the snapshot nor the stream ends by them.
func TestBytesThatAreNotUTF8(t *testing.T) {
	t.Parallel()
	for _, identity := range []string{"DEFAULT", "FULL"} {
		for _, composite := range []bool{false, true} {
			t.Run(fmt.Sprintf("identity %s, composite key %v", identity, composite), func(t *testing.T) {
				t.Parallel()
				r := newDeployment(t).encoded("SQL_ASCII")
				r.Exec(`ALTER TABLE subscribers_restaurants ALTER id TYPE text, REPLICA IDENTITY ` + identity)
				if composite {
					r.cfg.KeyColumns = []string{"id", "note"}
					r.Exec(`ALTER TABLE subscribers_restaurants DROP CONSTRAINT pk_id, ADD PRIMARY KEY (id, note)`)
				}
				r.setup()
				bad := `convert_from('\xe9e825', 'SQL_ASCII')`
				rows := func(key string) string {
					return strings.NewReplacer("$k", key, "$b", bad).Replace(`INSERT INTO subscribers_restaurants VALUES
						('$k1', 'note', 'r', $b), ($b || '$k2', 'key', 'r', 'x'), ('$k3', $b, 'r', 'x'), ('$k4', 'c', $b, 'x'), ('$k5', 'fine', 'r', 'x')`)
				}
				r.Exec(strings.ReplaceAll(rows("copied"), "'note'", "'note1'"))
				r.start()
				r.barrier()
				r.Exec(rows("streamed"))
				r.Exec(`UPDATE subscribers_restaurants SET client_id = client_id || '+' WHERE client_id IN ('key', 'fine')`)
				r.barrier()
				got := r.clients("r")
				slices.Sort(got)
				got = slices.Compact(got)
				if want := []string{"fine+", "key+", "note", "note1"}; !slices.Equal(got, want) {
					t.Errorf("clients are %q, want %q", got, want)
				}
				if v, found := r.verify(false); !v.Sound() {
					t.Errorf("verification found %v: %v", v, found)
				}
				r.Exec(`DELETE FROM subscribers_restaurants WHERE client_id = 'key+'`)
				r.barrier()
				if st := r.m.Status(); st.BadIDs != 4 || st.Subscriptions != 4 || st.Reconnects != 0 {
					t.Errorf("status is %+v, want 4 ids left out and 4 subscriptions", st)
				}
			})
		}
	}
}

// A value that has no counterpart in UTF-8 (other than under SQL_ASCII the server
// has to convert it) halts the mirror with an error that names the problem and the
// remedy, and leaves no slot. After the value was mended, the mirror goes on.
func TestValueWithoutCounterpartInUTF8(t *testing.T) {
	t.Parallel()
	for _, streamed := range []bool{false, true} {
		name := map[bool]string{false: "copied", true: "streamed"}[streamed]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newDeployment(t).encoded("WIN1251").setup()
			write := func() {
				r.Exec(`INSERT INTO subscribers_restaurants (client_id, restaurant_id) VALUES (convert_from('\x98', 'WIN1251'), 'r'), ('b', 'r')`)
			}
			if streamed {
				r.start()
				r.barrier()
				write()
			} else {
				write()
				r.start()
			}
			if h := r.awaitHalt(); !strings.Contains(h.What, "0x98") || !strings.Contains(h.What, "UTF-8") || !strings.Contains(h.Hint, "correct the value") {
				t.Errorf("halt is %q, hint %q", h.What, h.Hint)
			}
			if n := r.Int(`SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot); n != 0 {
				t.Error("a slot is left behind")
			}
			_ = r.halt()
			r.Exec(`UPDATE subscribers_restaurants SET client_id = 'a' WHERE client_id <> 'b'`)
			r.start()
			r.same("r")
		})
	}
}
