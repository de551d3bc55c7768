/* One lane of dinnerbell: two daemons, Postgres, Kafka. See README.md.
 *
 * Two processes `daemon` run TAKEOVER, DECIDE and SHIP (stream/takeover,
 * stream/commit.go, ship.go); one process `servers` is Postgres, Kafka and all
 * failures.
 * Every guarded line of a do-loop below is one atomic action of one of them,
 * and spin tries them in every order. A daemon that is not scheduled for a
 * while is a paused one, so zombies need no action of their own.
 *
 * Epochs and producer epochs are only ever compared for equality with the
 * newest one, so each is one bit per daemon: "mine is the newest". That makes
 * the model finite without a bound on crashes: any number of them is covered.
 *
 * -D removes rules; the list is in run.sh.
 */

#ifndef N
#define N 3 /* number of steps; 3 or 4 */
#endif
#ifndef W
#define W 2 /* the window: P <= K + W */
#endif

/* A payload is the client that the step notifies, 1..3, or EMPTY if the client
 * was notified before; 0 is no payload. */
#define EMPTY 4
typedef steps { byte pay[N + 1] };

/* ---- Postgres, committed ---- */
byte P;             /* lane.seq */
bool newest[2];     /* the daemon holds the lane's epoch */
steps outbox;       /* existing rows */
byte feedback;      /* clients with a row, as a bit set */

/* ---- Postgres, the open transaction of each daemon's sink connection ---- */
mtype = { IDLE, COPIED, SWAPPED, COMMITTING, QUEUED, QUEUED_COPIED };
mtype tx[2] = IDLE; /* SWAPPED and COMMITTING hold the lock on the lane row */
byte tx_row[2];     /* its payload */
byte tx_seq[2];     /* the step that it writes */
byte tx_del[2];     /* deletes the outbox up to here */
/* The whole step that was sent behind it: the server begins it by itself, whether
 * the session still exists or not. QUEUED: it is next; QUEUED_COPIED: its rows are
 * in, the compare-and-swap is next. */
byte q_row[2];      /* its payload, 0: none */
byte q_del[2];

/* ---- Kafka ---- */
byte K;             /* last committed progress record */
byte shown;         /* steps in the read_committed output */
bool producer[2];   /* the daemon's producer is not fenced */
mtype = { OPEN, DONE };
mtype ktx[2] = IDLE; /* DONE: committed, the answer is under way */
byte k_from[2], k_to[2]; /* the steps of the open transaction, none: 0 */
steps k_rec[2];     /* and their payloads, as they were produced */

/* ---- a daemon's session: gone with a crash ---- */
mtype = { DOWN, RAISED, FENCED, READ, SUSPECT, RUN };
mtype at[2] = DOWN;
byte seq[2];        /* P as the session knows it */
byte shipped[2];    /* K as the session knows it */
steps mem[2];       /* decided and not shipped: what SHIP will send */

/* ---- for the checks alone ---- */
steps written;      /* every outbox row that ever was */
byte calm;          /* 0: anything may fail; 1 + d: only daemon d goes on, nothing fails */

#define other(d)     (1 - (d))
#define locks(d)     (tx[d] == SWAPPED || tx[d] == COMMITTING)
#define faults       (calm == 0)
#define alive(d)     (calm == 0 || calm == 1 + (d))
#define over         (calm != 0 && P == N && K == N)
#define in_set(s, c) (((s) >> (c)) & 1)
#define queued(d)    (tx[d] == QUEUED || tx[d] == QUEUED_COPIED)

/* The compare-and-swap of DECIDE (AddChanges in stream/sink), with the seq that
 * the step was sent for. */
#if defined(NO_CAS)
#define cas_hits(d) true
#elif defined(NO_EPOCH)
#define cas_hits(d) (tx_seq[d] - 1 == P)
#elif defined(NO_SEQ)
#define cas_hits(d) (newest[d])
#else
#define cas_hits(d) (newest[d] && tx_seq[d] - 1 == P)
#endif

/* The primary key of the outbox. */
#ifdef NO_OUTBOX_KEY
#define key_free(d) true
#else
#define key_free(d) (outbox.pay[tx_seq[d]] == 0)
#endif

/* The order of TAKEOVER: which phase enables which step, and what follows. */
#if defined(NO_FENCE_BEFORE_READ)   /* raise, READ, FENCE, load */
#define may_raise(d) (at[d] == DOWN)
#define may_read(d)  (at[d] == RAISED)
#define may_fence(d) (at[d] == FENCED)
#define raised RAISED
#define read   FENCED
#define fenced READ
#elif defined(EPOCH_LAST)           /* FENCE, READ, RAISE, load */
#define may_fence(d) (at[d] == DOWN)
#define may_read(d)  (at[d] == RAISED)
#define may_raise(d) (at[d] == FENCED)
#define fenced RAISED
#define read   FENCED
#define raised READ
#else                               /* raise, fence, read, load */
#define may_raise(d) (at[d] == DOWN)
#define may_fence(d) (at[d] == RAISED)
#define may_read(d)  (at[d] == FENCED)
#define raised RAISED
#define fenced FENCED
#define read   READ
#endif

/* require: an invariant. run.sh prints the text of the one that is violated. */
#define require(cond, text) \
	if :: (cond) :: else -> printf("VIOLATED: "); printf(text); printf("\n"); assert(false) fi

inline clear(a) { for (j : 1 .. N) { a.pay[j] = 0 } }

/* The session's connections are closed. A transaction that holds no lock is as
 * good as rolled back; one that holds the lane row, or was sent whole, or whose
 * EndTxn may be under way, lives on in the server, with an unknown outcome. */
inline end_session(d) {
	at[d] = DOWN; seq[d] = 0; shipped[d] = 0; clear(mem[d]);
	if
	:: locks(d) || queued(d)
	:: else -> forget_tx(d)
	fi;
	if
	:: ktx[d] == OPEN
	:: else -> forget_ktx(d)
	fi
}

inline forget_tx(d)  { tx[d] = IDLE; tx_row[d] = 0; tx_seq[d] = 0; tx_del[d] = 0; q_row[d] = 0; q_del[d] = 0 }
inline forget_ktx(d) { ktx[d] = IDLE; k_from[d] = 0; k_to[d] = 0; clear(k_rec[d]) }

/* The session learns that its step is decided. */
inline decided(d) { seq[d] = tx_seq[d]; mem[d].pay[seq[d]] = tx_row[d] }

/* COMMIT of a step takes effect. */
inline pg_commit(d) {
	s = tx_seq[d]; r = tx_row[d];
	require(written.pay[s] == 0, "an outbox row is written once");
	require(r == EMPTY || !in_set(feedback, r), "payloads are disjoint, one row per client");
	P = s; outbox.pay[s] = r; written.pay[s] = r;
	if :: r != EMPTY -> feedback = feedback | (1 << r) :: else fi;
	for (j : 1 .. N) {
		if :: j <= tx_del[d] -> outbox.pay[j] = 0 :: else fi
	}
	u = 0;
	for (j : 1 .. N) {
		if
		:: j <= P && written.pay[j] != 0 && written.pay[j] != EMPTY -> u = u | (1 << written.pay[j])
		:: else
		fi
	}
	require(feedback == u, "feedback = union of payloads 1..P");
	require(K <= P && P <= K + W, "K <= P <= K + w");
	s = 0; r = 0; u = 0
}

/* EndTxn takes effect: the records, and with them the progress record, become
 * visible to read_committed consumers. */
inline kafka_commit(d) {
	for (j : 1 .. N) {
		if
		:: j >= k_from[d] && j <= k_to[d] ->
			require(j == shown + 1, "output = payloads 1..K, each once, in order");
			require(k_rec[d].pay[j] == written.pay[j], "a record is what Postgres decided");
			shown = j
		:: else
		fi
	}
#ifndef PROGRESS_OUTSIDE_TXN
	K = k_to[d];
	require(K == shown, "output = payloads 1..K, each once, in order");
#endif
	require(K <= P && P <= K + W, "K <= P <= K + w")
}

/* InitProducerID of d's new client: the coordinator aborts what is open under
 * the transactional id and refuses its former producers. */
inline fence(d) {
	fence_out(d); producer[d] = true;
#ifndef NO_FENCING
	fence_out(other(d))
#endif
}
inline fence_out(d) {
	producer[d] = false;
	if
	:: ktx[d] == OPEN -> forget_ktx(d)
	:: else
	fi
}

/* compareSinks and loadOutbox of stream/takeover. u: K > P, a gap in the outbox, or a
 * row up to P is missing. Rows above P are another owner's, and taken along. */
inline load(d) {
	u = (shipped[d] > seq[d]);
	for (j : 1 .. N) {
		if
		:: j > shipped[d] ->
			mem[d].pay[j] = outbox.pay[j];
			u = u || (outbox.pay[j] == 0 && j <= seq[d]) || (outbox.pay[j] != 0 && j > shipped[d] + 1 && outbox.pay[j - 1] == 0)
		:: else
		fi
	}
	if
	:: u -> clear(mem[d]); at[d] = SUSPECT
	:: else -> at[d] = RUN
	fi;
	u = 0
}

#if defined(HALT_ALLOWED)
#define halt(d) end_session(d)
#else
#define halt(d) require(false, "no halt: no sink was rolled back")
#endif

#if defined(HALT_AT_ONCE)
#define taken_over(d) false
#else
#define taken_over(d) (!newest[d])
#endif

/* DECIDE: begin and COPY of client c (AddFeedbackRows in stream/sink). Which clients a
 * step picks depends on a cursor and on a cache that may be old or lost: here,
 * any. Clients that nothing refers to are alike, so the lowest of them will do;
 * so are those that have a row: the unique index refuses them, ON CONFLICT
 * leaves them out, and the payload is what was RETURNED. */
#define may_decide(d) (alive(d) && at[d] == RUN && tx[d] == IDLE && seq[d] < N && seq[d] + 1 <= shipped[d] + W)
#define fresh(d, c)   (!in_set(feedback, c) && tx_row[other(d)] != c && q_row[other(d)] != c && tx_row[d] != c)
#define may_copy(d, c) \
	(may_decide(d) && (c == 1 || !fresh(d, 1)) && (c <= 2 || !fresh(d, 2)) && fresh(d, c))
#if defined(NO_UNIQUE_INDEX) || defined(SHIP_UNRETURNED)
#define known 1
#define unreturned(d) false
#else
#define known EMPTY
#define unreturned(d) (q_row[d] != EMPTY && in_set(feedback, q_row[d]))
#endif
inline copy(d, payload) {
	printf("%d: decide: begin, COPY payload %d as step %d\n", d, payload, seq[d] + 1);
	tx[d] = COPIED; tx_row[d] = payload; tx_seq[d] = seq[d] + 1
}

/* The next step, sent behind a COMMIT that is not answered. */
#define may_follow(d) (alive(d) && at[d] == RUN && tx[d] == COMMITTING && q_row[d] == 0 && seq[d] + 2 <= N && seq[d] + 2 <= shipped[d] + W)
#define may_queue(d, c) \
	(may_follow(d) && (c == 1 || !fresh(d, 1)) && (c <= 2 || !fresh(d, 2)) && fresh(d, c))
inline queue(d, payload) {
	printf("%d: decide: send payload %d as step %d behind it\n", d, payload, seq[d] + 2);
	q_row[d] = payload; q_del[d] = shipped[d]
}

/* SHIP: steps up to `last`, the progress record behind them, and EndTxn. */
#define may_ship(d, last) \
	(alive(d) && at[d] == RUN && ktx[d] == IDLE && shipped[d] < last && mem[d].pay[last] != 0)
inline ship(d, last) {
	if
	:: producer[d] ->
		printf("%d: ship: steps %d..%d\n", d, shipped[d] + 1, last);
		ktx[d] = OPEN; k_from[d] = shipped[d] + 1; k_to[d] = last;
		for (j : 1 .. N) {
			if :: j >= k_from[d] && j <= k_to[d] -> k_rec[d].pay[j] = mem[d].pay[j] :: else fi
		}
	:: else -> printf("%d: ship: fenced\n", d); end_session(d)
	fi
}

proctype daemon(byte d) {
	byte j, s, r, u; /* scratch, zero between actions */
	do
	/* TAKEOVER. RAISE waits for whoever holds the lane row. */
	:: d_step { alive(d) && may_raise(d) && !locks(0) && !locks(1) ->
		printf("%d: takeover: raise the epoch, read P=%d\n", d, P);
		if :: queued(d) -> forget_tx(d) :: else fi; /* of an earlier session: its epoch is gone */
		newest[d] = true; newest[other(d)] = false; seq[d] = P; at[d] = raised }
	:: d_step { alive(d) && may_fence(d) ->
		printf("%d: takeover: InitProducerID\n", d);
		fence(d); at[d] = fenced; j = 0 }
	:: d_step { alive(d) && may_read(d) ->
		printf("%d: takeover: read K=%d\n", d, K);
		shipped[d] = K; at[d] = read }
	:: d_step { alive(d) && at[d] == READ ->
		printf("%d: takeover: load the outbox\n", d);
		load(d); j = 0 }
	/* A rolled-back sink, or another takeover during this one? */
	:: d_step { alive(d) && at[d] == SUSPECT ->
		if
		:: taken_over(d) -> printf("%d: takeover: was taken over\n", d); end_session(d)
		:: else -> printf("%d: takeover: halt\n", d); halt(d)
		fi; j = 0 }

	/* DECIDE. */
	:: d_step { may_copy(d, 1) -> copy(d, 1) }
	:: d_step { may_copy(d, 2) -> copy(d, 2) }
	:: d_step { may_copy(d, 3) -> copy(d, 3) }
	:: d_step { may_decide(d) && in_set(feedback, 1) -> copy(d, known) }
	/* The compare-and-swap waits for the lock, then sees the newest row. */
	:: d_step { alive(d) && at[d] == RUN && tx[d] == COPIED && !locks(other(d)) ->
		if
		:: cas_hits(d) && key_free(d) ->
			printf("%d: decide: swap (epoch, seq), insert outbox row\n", d);
			tx[d] = SWAPPED; tx_del[d] = shipped[d]
		:: else -> printf("%d: decide: taken over\n", d); end_session(d)
		fi; j = 0 }
	:: d_step { alive(d) && at[d] == RUN && tx[d] == SWAPPED ->
		printf("%d: decide: send COMMIT\n", d);
		tx[d] = COMMITTING }
	:: d_step { may_queue(d, 1) -> queue(d, 1) }
	:: d_step { may_queue(d, 2) -> queue(d, 2) }
	:: d_step { may_queue(d, 3) -> queue(d, 3) }
	:: d_step { may_follow(d) && in_set(feedback, 1) -> queue(d, known) }
	/* SHIP: a batch of what is decided; the progress record is its last. */
	:: d_step { may_ship(d, 1) -> ship(d, 1); j = 0 }
	:: d_step { may_ship(d, 2) -> ship(d, 2); j = 0 }
	:: d_step { may_ship(d, 3) -> ship(d, 3); j = 0 }
#if N > 3
	:: d_step { may_ship(d, N) -> ship(d, N); j = 0 }
#endif
	/* The model leaves out records that are produced while their step commits: no
	 * consumer sees them before EndTxn, which waits for the answer. Here it does
	 * not. */
#ifdef SHIP_UNDECIDED
	:: d_step { alive(d) && at[d] == RUN && ktx[d] == IDLE && producer[d] && tx[d] == COMMITTING && shipped[d] + 1 == tx_seq[d] ->
		printf("%d: ship: step %d, which is not decided\n", d, tx_seq[d]);
		ktx[d] = OPEN; k_from[d] = tx_seq[d]; k_to[d] = tx_seq[d]; k_rec[d].pay[tx_seq[d]] = tx_row[d] }
#endif
	:: d_step { alive(d) && at[d] == RUN && ktx[d] == DONE ->
		printf("%d: ship: steps up to %d are shipped\n", d, k_to[d]);
#ifdef PROGRESS_OUTSIDE_TXN
		K = k_to[d];
#endif
		for (j : 1 .. N) {
			if :: j <= k_to[d] -> mem[d].pay[j] = 0 :: else fi
		}
		shipped[d] = k_to[d]; forget_ktx(d); j = 0 }

	/* At any moment: a crash, a lost response, a timeout, a cut connection. */
	:: d_step { faults && at[d] != DOWN ->
		printf("%d: crash or lost response: the session ends\n", d);
		end_session(d); j = 0 }

	/* Forbidden: to go on after an unknown outcome with a guess. */
#ifdef GUESS_DECIDED
	:: d_step { faults && at[d] == RUN && tx[d] == COMMITTING ->
		printf("%d: decide: COMMIT unanswered and rolled back; guess that it went through\n", d);
		decided(d); forget_tx(d) }
#endif
#ifdef GUESS_UNDECIDED
	:: d_step { faults && at[d] == RUN && tx[d] == COMMITTING ->
		printf("%d: decide: COMMIT unanswered and gone through; guess that it was rolled back\n", d);
		pg_commit(d); forget_tx(d); j = 0 }
#endif
#ifdef GUESS_SHIPPED
	:: d_step { faults && at[d] == RUN && ktx[d] == OPEN ->
		printf("%d: ship: EndTxn unanswered and aborted; guess that it went through\n", d);
		for (j : 1 .. N) {
			if :: j <= k_to[d] -> mem[d].pay[j] = 0 :: else fi
		}
		shipped[d] = k_to[d]; fence(d); j = 0 }
#endif
#ifdef GUESS_UNSHIPPED
	:: d_step { faults && at[d] == RUN && ktx[d] == OPEN ->
		printf("%d: ship: EndTxn unanswered and gone through; guess that it was aborted\n", d);
		kafka_commit(d); fence(d); j = 0 }
#endif
	:: over -> break
	od
}

/* May the server end d's transaction? Not if nothing may fail and d goes on. */
#ifdef NO_IDLE_TIMEOUT
#define may_abort(d) (at[d] != RUN)
#else
#define may_abort(d) (calm != 1 + (d) || at[d] != RUN)
#endif

/* What the servers do with d's transactions. A session that runs has no
 * transaction of an earlier one: RAISE waited for it, and FENCE ended it. After
 * a rollback the session may try the step again, as it does after a unique
 * violation; a Kafka transaction that timed out has cost the producer. */
#define serve(d) \
	:: d_step { tx[d] == COMMITTING -> \
		printf("postgres: commits step %d of %d\n", tx_seq[d], d); pg_commit(d); \
		if :: at[d] == RUN -> decided(d) :: else fi; \
		if \
		:: q_row[d] != 0 -> tx[d] = QUEUED; tx_row[d] = 0; tx_seq[d] = tx_seq[d] + 1; tx_del[d] = q_del[d]; q_del[d] = 0 \
		:: else -> forget_tx(d) \
		fi; j = 0 } \
	:: d_step { tx[d] == QUEUED && (q_row[d] == EMPTY || tx_row[other(d)] != q_row[d]) -> \
		if \
		:: unreturned(d) -> printf("postgres: refuses the rows of step %d of %d\n", tx_seq[d], d); forget_tx(d) \
		:: else -> printf("postgres: copies the rows of step %d of %d\n", tx_seq[d], d); \
			tx[d] = QUEUED_COPIED; tx_row[d] = q_row[d]; q_row[d] = 0 \
		fi } \
	:: d_step { tx[d] == QUEUED_COPIED && !locks(other(d)) -> \
		if \
		:: cas_hits(d) && key_free(d) -> printf("postgres: swaps for step %d of %d\n", tx_seq[d], d); tx[d] = COMMITTING \
		:: else -> printf("postgres: step %d of %d misses\n", tx_seq[d], d); forget_tx(d); \
			if :: at[d] == RUN -> end_session(d) :: else fi \
		fi; j = 0 } \
	:: d_step { tx[d] != IDLE && may_abort(d) -> \
		printf("postgres: rolls back step %d of %d\n", tx_seq[d], d); forget_tx(d) } \
	:: d_step { ktx[d] == OPEN -> \
		printf("kafka: commits steps %d..%d of %d\n", k_from[d], k_to[d], d); kafka_commit(d); \
		if :: at[d] == RUN -> ktx[d] = DONE; clear(k_rec[d]) :: else -> forget_ktx(d) fi; j = 0 } \
	:: d_step { ktx[d] == OPEN && may_abort_kafka(d) -> \
		printf("kafka: aborts steps %d..%d of %d\n", k_from[d], k_to[d], d); fence_out(d); j = 0 }
#define may_abort_kafka(d) (calm != 1 + (d) || at[d] != RUN)

proctype servers() {
	byte j, s, r, u; /* scratch, zero between actions */
	do
	serve(0)
	serve(1)
	/* The request of an abandoned takeover arrives late. */
	:: d_step { faults && (newest[0] || newest[1]) && !locks(0) && !locks(1) ->
		printf("postgres: raises the epoch for nobody\n");
		newest[0] = false; newest[1] = false }
	:: d_step { faults && (producer[0] || producer[1]) ->
		printf("kafka: gives a producer id to nobody\n");
		fence_out(0); fence_out(1); j = 0 }
	/* From here on nothing fails and one daemon goes on; the other is dead or
	 * paused forever. The one that goes on must be able to ship everything. */
	:: d_step { faults -> printf("calm: daemon 0 goes on alone\n"); calm = 1 }
	:: d_step { faults -> printf("calm: daemon 1 goes on alone\n"); calm = 2 }
	:: over -> break
	od
}

init { atomic { run daemon(0); run daemon(1); run servers() } }

#ifdef LIVE
/* No endless duel either: a daemon that goes on alone ships everything. */
ltl shipped { [] (calm != 0 -> <> over) }
#endif
