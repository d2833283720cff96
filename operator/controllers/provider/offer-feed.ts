/**
 * Tells who waits for it that offers have changed: a consumer hears within a second of a GPU that is sold, broken or cordoned,
 * and nobody asks again and again. Bounded: so many may wait, and those beyond are answered at once.
 */
import type { OfferList } from '../../api/gateway.ts';
import type { Clock } from '../../engine/clock.ts';

export interface OffersAnswer {
  readonly tag: string;
  /** Absent: as it was when the tag was given out. */
  readonly list?: OfferList;
}

export interface OfferFeed {
  /** Answers when the offers differ from those of `tag`, or after so long. */
  after(tag: string | undefined, waitSeconds: number, signal?: AbortSignal): Promise<OffersAnswer>;
  /** Something that offers are made of has changed. */
  stir(): void;
}

export const maxWaiting = 2000;
export const maxWaitSeconds = 30;
/** Changes come in flocks: nodes report, pods start. */
const settleMs = 250;
/** For what no event tells: silence of the cluster, a gateway that is held. */
const lookAgainMs = 5000;

export function createOfferFeed(options: {
  readonly offers: () => OfferList;
  readonly tagOf: (offers: OfferList['offers']) => string;
  readonly clock: Clock;
}): OfferFeed {
  const { offers, tagOf, clock } = options;
  const waiting = new Set<() => void>();
  let known: { tag: string; list: OfferList } | undefined;
  let stale = true;
  let cancel: (() => void) | undefined;

  function look(): { tag: string; list: OfferList } {
    if (!stale && known) return known;
    const list = offers();
    stale = false;
    known = { tag: tagOf(list.offers), list };
    return known;
  }

  function lookIn(milliseconds: number): void {
    cancel = clock.setTimeout(() => {
      cancel = undefined;
      const before = known?.tag;
      stale = true;
      let isOther = true;
      try {
        isOther = look().tag !== before;
      } catch {
        // The cluster does not answer: who waits asks, and is told so.
      }
      if (isOther) for (const wake of [...waiting]) wake();
      if (waiting.size > 0 && cancel === undefined) lookIn(lookAgainMs);
    }, milliseconds);
  }

  return {
    stir() {
      stale = true;
      if (waiting.size === 0) return;
      cancel?.();
      lookIn(settleMs);
    },
    async after(tag, waitSeconds, signal) {
      // Nobody was waiting, so nobody looked for what no event tells.
      if (waiting.size === 0) stale = true;
      const first = look();
      if (first.tag !== tag) return first;
      if (waitSeconds <= 0 || waiting.size >= maxWaiting) return { tag };
      await new Promise<void>((resolve) => {
        const end = () => {
          waiting.delete(end);
          late();
          signal?.removeEventListener('abort', end);
          if (waiting.size === 0) {
            cancel?.();
            cancel = undefined;
          }
          resolve();
        };
        const late = clock.setTimeout(end, Math.min(waitSeconds, maxWaitSeconds) * 1000);
        waiting.add(end);
        signal?.addEventListener('abort', end, { once: true });
        if (cancel === undefined) lookIn(lookAgainMs);
      });
      const now = look();
      return now.tag === tag ? { tag } : now;
    },
  };
}
