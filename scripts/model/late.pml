/* Late subscribers: two lanes, two daemons with a mirror each, one campaign that a
 * message makes and a second message edits, perhaps through the other lane. See
 * README.md.
 *
 * Every guarded line of the do-loop is one atomic action, and spin tries them in every
 * order. A takeover at any moment stands for crashes, rebalances and zombies: the epoch
 * in the compare-and-swap stops the former session, which lane.pml checks.
 *
 * Positions are even, so that the odd ones stand for "behind this position and before
 * the next change".
 *
 * -D removes rules; the list is in run.sh.
 */

#ifndef M
#define M 2 /* changes of the subscriptions */
#endif
#ifndef F
#define F 2 /* failures: takeovers, lost mirrors */
#endif
#define C 2 /* clients 1..C, in the order of the join */

#define bit(c) (1 << (c))
#define max(a, b) ((a) > (b) -> (a) : (b))

/* ---- the source ---- */
byte wal;               /* position of the last committed change, 2 * changes */
byte rows[M + 1];       /* subscribed clients behind each change, as a bit set */
byte entry[M + 1];      /* the client that the change made appear, 0: none */

/* ---- the mirror of each daemon ---- */
byte pos[2];            /* the rows that joins see are those of rows[pos / 2] */
byte low[2];            /* the floor: the log has every entry behind it */
byte hist[2];           /* the history that the log's positions belong to, 0: the first */
byte histories;         /* so many histories were given to logs */

/* ---- Postgres ---- */
byte version;           /* of the campaign's row, 0: no row */
byte newest;            /* the message that the row holds, 1 or 2 */
byte owner;             /* the lane that delivers it */
byte cursor;            /* last client looked at */
bool finished;
byte feedback;          /* clients with a row */
byte X[2];              /* lane.source_lsn */
byte xhist[2];          /* lane.source_id: the history in which X counts */
bool taken[3];          /* messages 1 and 2: the step that accepts it is committed */
byte lane_of[3];        /* the partition of each */

/* ---- the session of each lane: gone with a takeover ---- */
byte who[2];            /* its daemon */
bool up[2];             /* it may join */
bool set[2];            /* its restaurant set has the campaign's restaurant */
byte queued[2];         /* the message that is enqueued, 0: none */
byte live[2];           /* version in the decider's schedule, 0: none */
byte at[2];             /* and its cursor, ahead of Postgres' by the step under way */
byte view[2];           /* 1 + position of the view of the step under way, 0: no step */
byte accepts[2];        /* the message that the step accepts, 0: none */
byte pick[2];           /* and notifies this client, 0: nobody */
bool ends[2];           /* and finishes the campaign */
byte expects[2];        /* version that the step expects */
byte rd[2];             /* the reader has handled the log up to here */
byte found[2];          /* client of the entry behind rd that waits, 0: none */
bool behind[2];         /* it waits for the step under way */
byte late[2];           /* client of the late pick under way, 0: none */
byte lver[2];           /* version that the late pick expects */

byte failures;          /* so far; after F of them, none */

#define d who[l]
#ifdef NO_REACH
#define may_join(l) true
#else
#define may_join(l) (xhist[l] != hist[d] || pos[d] + 1 >= X[l]) /* the odd position behind pos counts as reached */
#endif
#define hits(l) (expects[l] == version && (accepts[l] > 0 || owner == l))
#define next_entry(l) ((rd[l] / 2) * 2 + 2 > low[d] -> entry[rd[l] / 2 + 1] : 0)
#define pass(l) rd[l] = (rd[l] / 2) * 2 + 2
#define next_is(l, m) (lane_of[m] == l && !taken[m] && (m == 1 || lane_of[1] != l || taken[1]))

/* lost ends the sessions on daemon x. */
inline lost(x) {
  if
  :: who[0] == x -> forget(0)
  :: else
  fi;
  if
  :: who[1] == x -> forget(1)
  :: else
  fi
}

inline forget(l) {
  up[l] = false; set[l] = false; queued[l] = 0; live[l] = 0; at[l] = 0; view[l] = 0;
  accepts[l] = 0; pick[l] = 0; ends[l] = false; expects[l] = 0;
  rd[l] = X[l]; found[l] = 0; behind[l] = false; late[l] = 0; lver[l] = 0
}

/* load puts the row as Postgres has it into the lane's schedule. */
inline load(l) {
  if
  :: version > 0 && owner == l && !finished -> live[l] = version; at[l] = cursor
  :: else
  fi
}

/* choose picks the next client of the view and moves the cursor. */
inline choose(l) {
  pick[l] = 0; ends[l] = true;
  c = at[l] + 1;
  do
  :: c <= C && (rows[(view[l] - 1) / 2] & bit(c)) && pick[l] == 0 -> pick[l] = c; at[l] = c; c++
  :: c <= C && (rows[(view[l] - 1) / 2] & bit(c)) && pick[l] != 0 -> ends[l] = false; c++
  :: c <= C && !(rows[(view[l] - 1) / 2] & bit(c)) -> c++
  :: c > C -> break
  od;
  if
  :: ends[l] -> at[l] = C
  :: else
  fi;
  c = 0
}

inline step_done(l) {
  view[l] = 0; accepts[l] = 0; pick[l] = 0; ends[l] = false; expects[l] = 0; behind[l] = false
}

proctype session(byte l) {
  byte c;
end_session:
  do
  /* begins to join: behind the position that the lane has reached */
  :: atomic { !up[l] && may_join(l) -> up[l] = true;
       printf("%d: begins to join on daemon %d, whose mirror is at %d; the lane is at %d\n", l, d, pos[d], X[l]);
       if
#ifndef NO_REJOIN
       :: X[l] < low[d] || xhist[l] != hist[d] ->
            X[l] = max(low[d], pos[d]); xhist[l] = hist[d];
            if
            :: version > 0 && owner == l -> version++; cursor = 0; finished = false
            :: else
            fi
#endif
       :: else
       fi;
       rd[l] = X[l];
       set[l] = version > 0 && owner == l;
       load(l) }

  /* a message is enqueued: its restaurant goes into the set first */
  :: atomic { up[l] && queued[l] == 0 && view[l] == 0 && (next_is(l, 1) || next_is(l, 2)) ->
       queued[l] = (next_is(l, 1) -> 1 : 2);
       printf("%d: message %d is enqueued\n", l, queued[l]);
#ifndef REGISTER_LATE
       set[l] = true
#endif
     }

  /* a step: a view, then the message and the first client, or the next client */
  :: atomic { up[l] && queued[l] > 0 && view[l] == 0 ->
       accepts[l] = queued[l]; queued[l] = 0;
       if
       :: version > 0 && newest > accepts[l] -> taken[accepts[l]] = true; accepts[l] = 0 /* an older message */
       :: else ->
            view[l] = 1 + pos[d]; expects[l] = version;
            live[l] = version + 1; at[l] = 0;
            choose(l);
            printf("%d: a step accepts message %d, with a view at %d, and picks client %d\n", l, accepts[l], pos[d], pick[l])
       fi }
  :: atomic { up[l] && queued[l] == 0 && view[l] == 0 && live[l] > 0 ->
       view[l] = 1 + pos[d]; expects[l] = live[l];
       choose(l);
       printf("%d: a step with a view at %d picks client %d\n", l, pos[d], pick[l]) }

  /* the step commits: every change compares the version */
  :: atomic { view[l] > 0 && hits(l) ->
       printf("%d: the step commits\n", l);
       if
       :: accepts[l] > 0 -> version++; owner = l; taken[accepts[l]] = true; newest = accepts[l];
#ifdef REGISTER_LATE
            set[l] = true
#endif
       :: else
       fi;
       cursor = at[l]; finished = ends[l];
       if
       :: pick[l] > 0 -> feedback = feedback | bit(pick[l])
       :: else
       fi;
       if
       :: finished -> live[l] = 0; at[l] = 0
       :: else
       fi;
       step_done(l) }
  /* it misses: the message is judged again, by the row that is there now */
  :: atomic { view[l] > 0 && !hits(l) ->
       printf("%d: the step misses the row\n", l);
       if
       :: accepts[l] > 0 -> queued[l] = accepts[l]
       :: else
       fi;
       live[l] = 0; at[l] = 0;
       step_done(l);
       load(l) }

  /* the reader of the log */
  :: atomic { up[l] && found[l] == 0 && late[l] == 0 && rd[l] < pos[d] ->
       if
       :: next_entry(l) == 0 || !set[l] -> pass(l); printf("%d: the reader passes %d\n", l, rd[l])
       :: else ->
            found[l] = next_entry(l);
            printf("%d: the reader finds client %d behind %d\n", l, found[l], rd[l]);
#ifndef NO_WAIT
            behind[l] = view[l] > 0
#endif
       fi }
  /* looks the campaigns of the restaurant up */
  :: atomic { found[l] > 0 && !behind[l] ->
       if
       :: version > 0 && owner == l -> late[l] = found[l]; lver[l] = version; printf("%d: a late pick of client %d, version %d\n", l, late[l], lver[l])
       :: else -> pass(l); printf("%d: no campaign of this lane: the reader passes %d\n", l, rd[l])
       fi;
       found[l] = 0;
#ifdef MOVE_EARLY
       X[l] = max(X[l], (rd[l] / 2) * 2 + 2)
#endif
     }
  /* the step with the late pick commits, or its pick is dropped */
  :: atomic { late[l] > 0 ->
       if
#ifdef NO_VERSION
       :: lver[l] != version ->
            printf("VIOLATED: a late pick is of the version that the row has\n"); assert(false)
       :: lver[l] == version && owner != l -> feedback = feedback | bit(late[l])
#endif
       :: lver[l] == version && owner == l -> feedback = feedback | bit(late[l]); printf("%d: client %d is notified late\n", l, late[l])
       :: else -> skip
       fi;
       pass(l); X[l] = max(X[l], rd[l]); late[l] = 0; lver[l] = 0 }
  /* a step that moves the position alone */
  :: atomic { up[l] && late[l] == 0 && X[l] < rd[l] -> X[l] = rd[l]; printf("%d: the lane is at %d\n", l, X[l]) }
  od
}

active proctype world() {
  byte c;
  atomic {
    lane_of[1] = 0;
    if
    :: lane_of[2] = 0
    :: lane_of[2] = 1
    fi;
    run session(0); run session(1)
  }
  do
  /* -- the source: somebody subscribes or unsubscribes -- */
  :: atomic { wal < 2 * M ->
       if
       :: c = 1
       :: c = 2
       fi;
       wal = wal + 2;
       rows[wal / 2] = rows[wal / 2 - 1] ^ bit(c);
       entry[wal / 2] = ((rows[wal / 2] & bit(c)) -> c : 0);
       printf("postgres: at %d the subscribers are %d\n", wal, rows[wal / 2]);
       c = 0 }

  /* -- the mirrors -- */
  :: atomic { pos[0] < wal -> pos[0] = pos[0] + 2 }
  :: atomic { pos[1] < wal -> pos[1] = pos[1] + 2 }
  /* a crash loses what was applied and not synced; the service ends with it */
  :: atomic { failures < F && pos[0] > 0 && pos[0] - 2 >= low[0] -> failures++; pos[0] = pos[0] - 2; lost(0); printf("daemon: 0 crashes; its mirror is back at %d\n", pos[0]) }
  :: atomic { failures < F && pos[1] > 0 && pos[1] - 2 >= low[1] -> failures++; pos[1] = pos[1] - 2; lost(1); printf("daemon: 1 crashes; its mirror is back at %d\n", pos[1]) }
  /* a snapshot of the present: the log begins behind it */
  :: atomic { failures < F && low[0] <= wal -> failures++; pos[0] = wal; low[0] = wal + 1; lost(0); printf("daemon: 0 takes a snapshot at %d\n", wal) }
  :: atomic { failures < F && low[1] <= wal -> failures++; pos[1] = wal; low[1] = wal + 1; lost(1); printf("daemon: 1 takes a snapshot at %d\n", wal) }

  /* the source is set back on its timeline, behind both mirrors: positions come again with
     other changes. A mirror that meets the source behind itself takes a snapshot, whose log
     has a history of its own. */
  :: atomic { failures < F && wal > 0 && pos[0] >= wal && pos[1] >= wal ->
       failures++; wal = wal - 2;
       pos[0] = wal; low[0] = wal + 1; pos[1] = wal; low[1] = wal + 1;
#ifndef NO_HISTORY
       histories++; hist[0] = histories; histories++; hist[1] = histories;
#endif
       lost(0); lost(1);
       printf("postgres: is set back to %d; the subscribers are %d\n", wal, rows[wal / 2]) }

  /* -- takeovers -- */
  :: atomic { failures < F -> failures++; who[0] = 0; forget(0); printf("0: is taken over by daemon 0\n") }
  :: atomic { failures < F -> failures++; who[0] = 1; forget(0); printf("0: is taken over by daemon 1\n") }
  :: atomic { failures < F -> failures++; who[1] = 0; forget(1); printf("1: is taken over by daemon 0\n") }
  :: atomic { failures < F -> failures++; who[1] = 1; forget(1); printf("1: is taken over by daemon 1\n") }

  :: atomic { failures < F -> failures = F } /* nothing fails from now on */

  /* nothing more happens: everybody who is subscribed has the campaign */
  :: timeout ->
       if
       :: version > 0 && (rows[wal / 2] & ~feedback) != 0 ->
            printf("VIOLATED: a subscriber of a live campaign was missed\n"); assert(false)
       :: else
       fi;
       break
  od;
end: false
}
