/* uniform.pml - survivors of a killed rank report the same outcome of each operation (docs/design.md section 3).
 *
 * N ranks of one group run STEPS steps, each of OPS operations and a commit, over shared memory.  Up to CRASHES of
 * them are killed at any point (ZOMBIE=1: or evicted while they still run).  The agent notices at any later moment:
 *     evidence -> wedge -> cut -> flush -> revoke -> fence -> install.
 * Each epoch has fresh memory: a Block per member, with its two words, its flags and its two slots.  Memory is
 * sequentially consistent.  Dead ranks' blocks stay readable (REPORT=0 drops their words, as when a host is lost).
 *
 *   spin -DN=3 -a uniform.pml && gcc -O2 -DSAFETY -DNOREDUCE -DCOLLAPSE -o pan pan.c && ./pan -E -m200000
 *   spin -DN=3 -t -p -g uniform.pml            replays the counterexample of a run that failed (same -D as above)
 *
 * The defaults are the rules to build.  A switch below that is set lower weakens one rule (README.md: which fail).
 */
#ifndef N
#define N 3        /* ranks */
#endif
#ifndef SPARES
#define SPARES 0   /* 1: a process waits to take a lost seat in the next epoch */
#endif
#ifndef OPS
#define OPS 2      /* operations in a step; OPS * STEPS <= 4 */
#endif
#ifndef STEPS
#define STEPS 1
#endif
#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef ZOMBIE
#define ZOMBIE 0
#endif
/* Kinds of operation: AR all_reduce, BC broadcast from rank 1, RD reduce to rank 0; XS all_reduce that pulls from the
 * callers' registered buffers and ends with an exit synchronisation; PU the same by push into them. */
#define AR 0
#define BC 1
#define RD 2
#define XS 3
#define PU 4
#ifndef K1
#define K1 AR
#endif
#ifndef K2
#define K2 AR
#endif
#ifndef K3
#define K3 AR
#endif
#ifndef K4
#define K4 AR
#endif
#define KIND(k) ((k) == 1 -> K1 : ((k) == 2 -> K2 : ((k) == 3 -> K3 : K4)))
#define SENDS(q,k) (KIND(k) == BC -> (q) == 1 : (KIND(k) == RD -> (q) != 0 : 1))
#define RECVS(q,k) (KIND(k) == BC -> (q) != 1 : (KIND(k) == RD -> (q) == 0 : 1))

/* ---- rules ---------------------------------------------------------------------------------------------------- */
#ifndef REPORT
#define REPORT 1   /* whose words are wedged and counted: 0 the survivors', 1 all members', dead and evicted too      */
#endif
#ifndef CUTWORD
#define CUTWORD 3  /* how a cut reaches a rank.  0 published, the words stay as wedged.  Else stored into the rank's own
                      word, which alone decides what its calls return: 1 by a message that may come late; 2 by one that
                      a word stamped in a later round refuses; 3 by the agent itself                                  */
#endif
#ifndef STICKY
#define STICKY 1   /* a verdict on the step that a survivor's word holds is 0 recomputed, 1 kept, by a later round      */
#endif
#ifndef PREP
#define PREP 2     /* prepared(s): 0 plain store, commit is true once all are seen; 1 plain store, a wedged rank waits
                      for the verdict; 2 a compare-and-swap on the domain word, which fails once that is wedged       */
#endif
#ifndef LATE
#define LATE 1     /* a call in an epoch left behind: 0 returns RankLost at once, 1 is answered by its epoch's word     */
#endif
#ifndef HAND
#define HAND 2     /* handing over an operation 0 moves the word; 1 does not, a later completion passes it freely;
                      2 does not, a later completion passes it once all its contributions are published              */
#endif
#ifndef RETAIN
#define RETAIN 2   /* the slot of k is reused for k+2: 0 at once; 1 when the words of all its readers are >= k;
                      2 and none of these words is wedged                                                            */
#endif
#ifndef BIND
#define BIND 1     /* a call uses 0 the epoch installed when it starts, 1 the epoch that its program entered          */
#endif
#ifndef FENCE
#define FENCE 1    /* 1: evicted ranks are killed and reaped before the install; 0: they run on for ever              */
#endif
#ifndef QUIET
#define QUIET 0    /* 1: outcomes are handed out only after each survivor left the data plane and each lost rank is
                      reaped; PU needs it                                                                            */
#endif
#ifndef REUSE
#define REUSE 0    /* 1: epoch e+1 uses epoch e's slots again                                                         */
#endif
#ifndef ENGINE
#define ENGINE 0   /* a rank wedges itself 1: when it sees a death; 2: also by mistake; 3: as 2, and the agent learns of
                      each wedge and runs the round even if nobody is lost                                            */
#endif
#ifndef SPLIT
#define SPLIT 1    /* 0: the two words of a rank are wedged in one step (fewer states)                                */
#endif
/* What may be promised about ranks that died: an operation done on one is done (FULL); a committed step has the
 * prepared message, hence the mirror, of each seat (MIRROR).  Both need REPORT=1. */
#ifndef FULL
#define FULL REPORT
#endif
#ifndef MIRROR
#define MIRROR REPORT
#endif

/* ---- memory --------------------------------------------------------------------------------------------------- */
#define P (N + SPARES)
#define E (CRASHES + 1)
#define NONE 7
typedef Block {                 /* one process in one epoch */
  unsigned seq : 3;             /* group word: last completed operation,               */
  bit wg;                       /*   wedge bit,                                        */
  unsigned rnd : 2;             /*   round that wedged it last (CUTWORD 2),            */
  bit dec;                      /*   decided: seq is the cut, com the step committed   */
  unsigned com : 2;
  unsigned prep : 2;            /* domain word: last prepared step,                    */
  bit wd;                       /*   wedge bit                                         */
  unsigned arr : 3;             /* flag: last operation whose slot is written          */
  unsigned conf : 3;            /* flag: last operation confirmed (XS, PU)             */
  bit busy;                     /* inside the data plane (QUIET)                       */
  byte slot[2];                 /* contribution: 16 * attempt + operation              */
  bit msg; unsigned mr : 2;     /* message under way to this word, and its round       */
  byte done; byte gone          /* ghost: operations that returned done, RankLost      */
};
typedef Epoch {
  Block b[P];
  byte member;                  /* set of processes                                    */
  unsigned resume : 2;          /* the step at which its members start                 */
  bit pub;                      /* a cut is published                                  */
  byte cut[4]; byte com[4]      /* by round                                            */
};
Epoch ep[E];
unsigned inst : 2;              /* the installed epoch */
byte alive, lost, fin;          /* sets: running; removed by the agent; program ended */
byte applied[P];                /* ghost: last step that the program applied after commit */
unsigned stable : 2;            /* ghost: last step whose commit returned true on anybody */
unsigned budget : 2;            /* crashes still to come */
unsigned rnd : 2;               /* the agent's round */

#define IN(set,p) (((set) >> (p)) & 1)
#define BIT(p) (1 << (p))
#if P == 3
#define ALL(F) (F(0) && F(1) && F(2))
#define EACH(F) :: F(0) :: F(1) :: F(2)
#elif P == 4
#define ALL(F) (F(0) && F(1) && F(2) && F(3))
#define EACH(F) :: F(0) :: F(1) :: F(2) :: F(3)
#else
#define ALL(F) (F(0) && F(1) && F(2) && F(3) && F(4))
#define EACH(F) :: F(0) :: F(1) :: F(2) :: F(3) :: F(4)
#endif
#ifdef ANYFIRST
#define SYM(q) 1                /* needed once ranks differ: any operation is BC or RD, or ENGINE=3 */
#else
#define SYM(q) ((q) >= N || (q) == N - 1 - CRASHES + budget)  /* ranks are alike: they go from the last downwards */
#endif

/* ---- a rank's program and its runtime -------------------------------------------------------------------------- */
#if BIND
#define u my                    /* the epoch whose memory a call uses */
#endif
#define MEM (REUSE -> 0 : u)
#define B(q) ep[u].b[q]
#define SLOT(q,k) ep[MEM].b[q].slot[(k) & 1]
#define MBR(q) IN(ep[u].member, q)
#define RUN IN(alive, me)
#define TAG (16 * my + k)
#define OLD (SLOT(me, k) >> 4 == my -> SLOT(me, k) & 15 : 0)  /* the operation whose slot is to be reused */
#define READ_OLD(q)  (!MBR(q) || OLD == 0 || !RECVS(q, OLD) || (q) == me || \
                      (B(q).seq >= OLD && (RETAIN == 1 || !B(q).wg)))
#define ARRIVED(q)   (!MBR(q) || !SENDS(q, k) || B(q).arr >= k)
#define CONFIRMED(q) (!MBR(q) || B(q).conf >= k)
#define TAGGED(q)    (!MBR(q) || !SENDS(q, k) || SLOT(q, k) == TAG)
#define PUB1(q,i)    ((i) >= k || !SENDS(q, i) || B(q).arr >= (i))
#define PUBLISHED(q) (HAND != 2 || !MBR(q) || (PUB1(q, 1) && PUB1(q, 2) && PUB1(q, 3)))
#define PREPARED(q)  (!MBR(q) || B(q).prep >= s)
#define PEER(q)      ((q) != me && MBR(q) && IN(alive, q) && !IN(lost, q))
#define SAME_D(q)    (!PEER(q) || !IN(B(q).gone, k))
#define SAME_L(q)    (!PEER(q) || !IN(B(q).done, k))
#define SAME_F(q)    (!FULL || !MBR(q) || !IN(B(q).done, k))
#define OPEN(q)      (!PEER(q) || !IN(B(q).done | B(q).gone, k))
#define DIE          :: atomic { budget && RUN && IN(ep[inst].member & ~lost, me) && SYM(me) -> \
                                  alive = alive & ~BIT(me); budget--; my = NONE; k = 0; s = 0; goto end }

inline report_done() {          /* the call returns "done" */
  B(me).done = B(me).done | BIT(k);
  assert(IN(lost, me) || ALL(SAME_D))                         /* (a) (b) */
}
inline report_lost() {          /* the call returns RankLost */
  B(me).gone = B(me).gone | BIT(k);
  assert(IN(lost, me) || (ALL(SAME_L) && ALL(SAME_F)))        /* (a) (b) */
}
inline give_back() {            /* after any return the caller reuses its registered buffer */
  if :: KIND(k) >= XS -> SLOT(me, k) = 0 :: else fi
}
inline committed() {            /* commit returns true: the program applies the step */
  applied[me] = s;
  if :: stable < s -> stable = s :: else fi;
  assert(inst == my || ep[my + 1].resume > s);                /* (c) */
  s++; k++;
  if :: s > STEPS -> fin = fin | BIT(me); goto over :: else -> goto op fi
}
inline next_op() { if :: k % OPS == 0 -> goto commit :: else -> k++; goto op fi }

proctype Rank(byte me) {
  byte my = NONE, k, s;
#if !BIND
  byte u;
#endif
next:                           /* step.next(): enter the newest view that has me */
  if
  :: atomic { RUN && my != inst && IN(ep[inst].member, me) ->
       s = ep[inst].resume;
       if :: my == NONE -> applied[me] = s - 1                /* first view, or healed newcomer */
          :: else -> assert(applied[me] + 1 == s)             /* (c): all go on after what they applied */
       fi;
       my = inst; k = 1;
       if :: s > STEPS -> fin = fin | BIT(me); goto over :: else fi
     }
  DIE fi;
op:
#if !BIND
  atomic { RUN -> u = (IN(ep[inst].member, me) -> inst : my) };
#endif
  if                                                          /* enter */
  :: atomic { LATE == 0 && RUN && inst > my -> report_lost(); goto next }
  :: atomic { RUN && B(me).wg -> goto decide }
  :: atomic { RUN && !B(me).wg && (RETAIN == 0 || !SENDS(me, k) || ALL(READ_OLD)) -> B(me).busy = QUIET }
  DIE fi;
  if                                                          /* publish my contribution */
  :: atomic { RUN ->
       if :: SENDS(me, k) -> SLOT(me, k) = TAG; B(me).arr = k :: else fi;
       if :: HAND && !RECVS(me, k) -> B(me).busy = 0; next_op() :: else fi  /* handed over: no outcome */
     }
  DIE fi;
  if                                                          /* await and reduce */
  :: atomic { RUN && B(me).wg -> B(me).busy = 0; goto decide }
  :: atomic { ENGINE && RUN && !B(me).wg && (ENGINE == 2 || ENGINE == 3 && budget || (ep[u].member & ~alive)) ->
       B(me).wg = 1;
       if :: ENGINE == 3 && budget && !(ep[u].member & ~alive) -> budget-- :: else fi  /* counts as one of CRASHES */
     }
  :: atomic { RUN && (!RECVS(me, k) || ALL(ARRIVED)) ->
       if
       :: KIND(k) < XS && RECVS(me, k) -> assert(ALL(TAGGED)) /* (d) (e) */
       :: KIND(k) == XS -> if :: ALL(TAGGED) -> B(me).conf = k :: else fi     /* some given back: epoch is wedged */
       :: KIND(k) == PU -> assert(ALL(OPEN)); B(me).conf = k  /* no store into memory already given back */
       :: else
       fi
     }
  DIE fi;
  if                                                          /* complete */
  :: atomic { RUN && B(me).wg -> B(me).busy = 0; goto decide }
  :: atomic { RUN && !B(me).wg && ALL(PUBLISHED) && (KIND(k) < XS || ALL(CONFIRMED)) ->
       B(me).seq = k; B(me).busy = 0;
       if :: RECVS(me, k) -> report_done() :: else fi;
       give_back(); next_op()
     }
  DIE fi;
decide:                         /* wedged: nothing is returned before the cut is known */
  if
  :: atomic { RUN && (CUTWORD -> B(me).dec : ep[u].pub) ->
       if
       :: k <= (CUTWORD -> B(me).seq : ep[u].cut[0]) ->       /* flush: finish it from retained data */
          if
          :: RECVS(me, k) -> assert(KIND(k) < XS -> ALL(TAGGED) : B(me).conf >= k); report_done()   /* (d) (e) */
          :: else
          fi;
          give_back(); next_op()
       :: else ->                                             /* revoked */
          if :: RECVS(me, k) -> report_lost() :: else fi;
          give_back(); goto next
       fi
     }
  DIE fi;
commit:
  if
  :: atomic { LATE == 0 && RUN && inst > my -> goto next }
  :: atomic { RUN && PREP == 2 && B(me).wd -> goto verdict }
  :: atomic { RUN && (PREP < 2 || !B(me).wd) -> B(me).prep = s }
  DIE fi;
  if
  :: atomic { RUN && B(me).wd -> goto verdict }
  :: atomic { RUN && (PREP != 1 || !B(me).wd) && ALL(PREPARED) -> committed() }
  DIE fi;
verdict:
  if
  :: atomic { RUN && (CUTWORD -> B(me).dec : ep[u].pub) ->
       if :: (CUTWORD -> B(me).com : ep[u].com[0]) >= s -> committed() :: else -> goto next fi
     }
  DIE fi;
over:
  if DIE fi;
end: false                      /* dead, or the program is over */
}

/* ---- the agent: evidence -> wedge -> cut -> flush -> revoke -> fence -> install --------------------------------- */
#define A(q) ep[inst].b[q]
#define MEMBER(q) IN(ep[inst].member, q)
#define SURV(q)    (MEMBER(q) && !IN(lost, q))
#define SPEAKS(q)  (MEMBER(q) && (REPORT || !IN(lost, q)))
#define GONE(q)    atomic { SURV(q) && !IN(alive, q) -> lost = lost | BIT(q); goto round }
#define EVICT(q)   atomic { ZOMBIE && budget && SURV(q) && IN(alive, q) && SYM(q) -> \
                            lost = lost | BIT(q); budget--; goto round }
#define EVIDENCE   EACH(GONE) EACH(EVICT)                     /* a further loss starts the round again */
#define STALE(q)   (SPEAKS(q) && (!A(q).wg || CUTWORD == 2 && A(q).rnd != rnd))
#define WEDGE_G(q) atomic { STALE(q) -> A(q).wg = 1; A(q).rnd = rnd; \
                            if :: SPLIT -> skip :: else -> A(q).wd = 1 fi; goto wedge }
#define WEDGE_D(q) atomic { SPEAKS(q) && !A(q).wd -> A(q).wd = 1; goto wedge }
#define WEDGED(q)  (!SPEAKS(q) || (!STALE(q) && A(q).wd))
#define UNWEDGED(q) (!A(q).wg)
#define LEFT(q)    (!QUIET || !SURV(q) || !A(q).busy)
#define APPLY(q,r) A(q).dec = 1; A(q).com = ep[inst].com[r]; \
                   if :: A(q).seq < ep[inst].cut[r] -> A(q).seq = ep[inst].cut[r] :: else fi
#define TELL(q)    atomic { CUTWORD && SURV(q) && !A(q).dec && ALL(LEFT) && !(A(q).msg && A(q).mr == rnd) -> \
                            if :: CUTWORD == 3 -> APPLY(q, rnd) :: else -> A(q).msg = 1; A(q).mr = rnd fi; goto tell }
#define DELIVER(q) atomic { A(q).msg -> A(q).msg = 0; \
                            if :: !A(q).dec && (CUTWORD == 1 || A(q).mr == A(q).rnd) -> APPLY(q, A(q).mr) :: else fi }
#define TOLD(q)    (CUTWORD == 0 || !SURV(q) || A(q).dec)
#define KEPT(q)    (!SURV(q) || (A(q).done >> (c + 1)) == 0)
#define MIRRORED(q) (!MIRROR || !MEMBER(q) || A(q).prep >= cm || cm < ep[inst].resume)
#define ENDED(q)   (!IN(alive, q) || IN(lost, q) || !MEMBER(q) || IN(fin, q))

active proctype Agent() {
  byte q, c, cm;
  d_step {
    do :: q < P -> alive = alive | BIT(q); if :: q < N -> ep[0].member = ep[0].member | BIT(q) :: else fi; q++
       :: else -> break
    od;
    ep[0].resume = 1; budget = CRASHES; q = 0
  }
  atomic { do :: q < P -> run Rank(q); q++ :: else -> break od; q = 0; run Luck(); run Net() }
steady:
  if
  EVIDENCE
  :: ENGINE == 3 && !ALL(UNWEDGED) && !(ep[inst].member & ~lost & ~alive)     /* nobody lost, but somebody wedged */
  fi;
round:
  atomic { ep[inst].pub = 0; if :: CUTWORD == 1 || CUTWORD == 2 -> rnd++ :: else fi }
wedge:                          /* fetch_or on each word, in any order; a word stands still from then on, so the */
  if                            /* reports are read from the words, all at once, when the last one is wedged     */
  EVIDENCE EACH(WEDGE_G) EACH(WEDGE_D)
  :: ALL(WEDGED)
  fi;
  d_step {                      /* cut = the highest completed; step committed = the lowest prepared */
    c = 0; cm = 3;
    do
    :: q < P -> if :: SPEAKS(q) -> if :: A(q).seq > c -> c = A(q).seq :: else fi;
                                   if :: A(q).prep < cm -> cm = A(q).prep :: else fi
                   :: else
                fi; q++
    :: else -> break
    od;
    q = 0;
    do
    :: q < P -> if :: STICKY && SURV(q) && A(q).dec -> cm = A(q).com :: else fi; q++
    :: else -> break
    od;
    q = 0;
    assert(ALL(KEPT));                                        /* (b): nothing that a survivor returned is dropped */
    assert(ALL(MIRRORED));
    ep[inst].cut[rnd] = c; ep[inst].com[rnd] = cm; c = 0; cm = 0;
    if :: QUIET -> alive = alive & ~lost :: else fi;
    if :: CUTWORD == 0 -> ep[inst].pub = 1 :: else fi
  }
tell:                           /* flush and revoke */
  if
  EVIDENCE EACH(TELL)
  :: ALL(TOLD)
  fi;
  if                            /* fence and install */
  EVIDENCE
  :: atomic { true ->
       cm = ep[inst].com[rnd];
       assert(cm >= stable);                                  /* (c): what anybody saw committed stays so */
       if :: FENCE -> alive = alive & ~lost :: else fi;
       ep[inst + 1].member = ep[inst].member & ~lost;
       if :: SPARES && !MEMBER(P - 1) && !IN(lost, P - 1) ->
               ep[inst + 1].member = ep[inst + 1].member | BIT(P - 1)
          :: else
       fi;
       do :: q < P -> ep[inst + 1].b[q].prep = cm; q++ :: else -> break od;
       ep[inst + 1].resume = cm + 1; q = 0; cm = 0; rnd = 0; inst++;
       goto steady
     }
  fi
}

proctype Luck() { budget = 0 }  /* from some moment on nobody dies any more */
proctype Net() { do EACH(DELIVER) od }
/* (f) When nothing can move any more, every rank that should have ended has ended. */
active proctype Monitor() { timeout -> assert(ALL(ENDED)) }
