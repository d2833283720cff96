/**
 * Time, and who is alive in it. Everything that happens in a run is an entry here: a message that arrives, a timer that
 * fires, a block, an incident. Entries happen one at a time; after each, all code that became ready runs until it waits
 * again. So the order of the entries is the whole of a run, and follows from the seed.
 */
import type { Clock } from '../../operator/engine/clock.ts';

const now = Date;
const turn = setImmediate;

/** One process. When it crashes, nothing of it ever runs again: its timers, and the answers that it waited for, are lost. */
export interface Party {
  readonly name: string;
  readonly clock: Clock;
  readonly alive: boolean;
  /** What its wall clock is wrong by. */
  skewMs: number;
  /** As SIGSTOP: until then nothing of it runs, and then everything that was due. */
  pausedUntilMs: number;
  /** Calls made through ports so far. */
  calls: number;
  crash(): void;
  /** Returns the way to not be told. */
  onCrash(then: () => void): () => void;
}

export interface Timeline {
  /** Milliseconds since the epoch, by the world's own clock. */
  readonly nowMs: number;
  /** Who runs just now; undefined: the world itself. */
  readonly running: Party | undefined;
  readonly steps: number;
  /** Of the order of all steps. */
  readonly hash: string;
  /** Whole milliseconds, rounded up, so that nobody is woken too early. Entries with a label count as steps. Returns the way to cancel. */
  schedule(afterMs: number, label: string, run: () => void, owner?: Party): () => void;
  party(name: string): Party;
  /** The rest of this step is done by `party`. */
  become(party: Party | undefined): void;
  /** Goes on until then, or until `stop` says so after a step. */
  runUntil(endMs: number, afterStep: () => boolean | undefined): Promise<void>;
}

interface Entry {
  readonly dueMs: number;
  readonly order: number;
  readonly label: string;
  readonly owner: Party | undefined;
  run: (() => void) | undefined;
}

export function timeline(startMs: number): Timeline {
  const heap: Entry[] = [];
  let nowMs = startMs;
  let order = 0;
  let steps = 0;
  let running: Party | undefined;
  let [low, high] = [0x811c9dc5, 0x9747b28c];

  function mix(label: string) {
    for (let i = 0; i < label.length; i++) {
      low = Math.imul(low ^ label.charCodeAt(i), 0x01000193);
      high = Math.imul(high ^ label.charCodeAt(i), 0x5bd1e995) ^ (high >>> 15);
    }
  }

  function schedule(afterMs: number, label: string, run: () => void, owner?: Party) {
    const entry: Entry = { dueMs: nowMs + Math.max(0, Math.ceil(afterMs)), order: order++, label, owner, run };
    push(heap, entry);
    return () => {
      entry.run = undefined;
    };
  }

  return {
    get nowMs() {
      return nowMs;
    },
    get running() {
      return running;
    },
    get steps() {
      return steps;
    },
    get hash() {
      return (low >>> 0).toString(16).padStart(8, '0') + (high >>> 0).toString(16).padStart(8, '0');
    },
    schedule,
    party(name) {
      let alive = true;
      const bornMs = nowMs;
      const crashed = new Set<() => void>();
      const party: Party = {
        name,
        get alive() {
          return alive;
        },
        skewMs: 0,
        pausedUntilMs: 0,
        calls: 0,
        clock: {
          now: () => new now(nowMs + party.skewMs),
          monotonicMs: () => nowMs - bornMs,
          setTimeout: (fn, ms) => schedule(ms, `timer ${name}`, fn, party),
        },
        crash() {
          if (!alive) return;
          alive = false;
          for (const then of [...crashed]) then();
          crashed.clear();
        },
        onCrash(then) {
          crashed.add(then);
          return () => crashed.delete(then);
        },
      };
      return party;
    },
    become(party) {
      running = party;
    },
    async runUntil(endMs, afterStep) {
      for (let entry = heap[0]; entry && entry.dueMs <= endMs; entry = heap[0]) {
        pop(heap);
        const { run, owner } = entry;
        if (!run || owner?.alive === false) continue;
        if (owner && owner.pausedUntilMs > entry.dueMs) {
          const due = { ...entry, dueMs: Math.ceil(owner.pausedUntilMs) };
          push(heap, due);
          // Whoever cancels the entry means the one that waits.
          Object.defineProperty(entry, 'run', {
            set: (value) => Object.assign(due, { run: value }),
            get: () => due.run,
          });
          continue;
        }
        nowMs = Math.max(nowMs, entry.dueMs);
        entry.run = undefined;
        steps++;
        mix(entry.label);
        running = owner;
        run();
        await new Promise((resolve) => turn(resolve));
        running = undefined;
        if (afterStep()) return;
      }
      nowMs = Math.max(nowMs, Math.ceil(endMs));
    },
  };
}

const before = (a: Entry, b: Entry) => a.dueMs < b.dueMs || (a.dueMs === b.dueMs && a.order < b.order);

function push(heap: Entry[], entry: Entry) {
  let at = heap.push(entry) - 1;
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (!before(entry, heap[parent]!)) break;
    heap[at] = heap[parent]!;
    at = parent;
  }
  heap[at] = entry;
}

function pop(heap: Entry[]) {
  const last = heap.pop();
  if (last === undefined || heap.length === 0) return;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++;
    if (!before(heap[child]!, last)) break;
    heap[at] = heap[child]!;
    at = child;
  }
  heap[at] = last;
}
