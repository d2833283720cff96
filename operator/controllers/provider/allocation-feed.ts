/**
 * Tells who follows a lease what becomes of its allocation: at once when it changes, and every few seconds that it is as it was.
 * The latter is said only while the cluster answers, which is found out by one question for all who follow: a thousand leases
 * that each asked for themselves every few seconds took most of a core on either side.
 */
import { type AllocationInfo, allocationBeatSeconds } from '../../api/gateway.ts';
import type { Hex32 } from '../../api/messages.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { Clock } from '../../engine/clock.ts';
import type { Log } from '../../engine/types.ts';

/** `undefined`: it is as it was, and the cluster answers. */
export type TellAllocation = (info: AllocationInfo | undefined) => void;

export interface AllocationFeed {
  /**
   * Tells how it is now, and from then on. Resolves when the lease is known no longer, or the signal fires. Throws, before it has
   * told anything, as `allocation` does.
   */
  follow(leaseId: Hex32, tell: TellAllocation, signal: AbortSignal): Promise<void>;
  recordChanged(leaseId: Hex32): void;
  nodeChanged(name: string): void;
}

interface Follower {
  readonly leaseId: Hex32;
  readonly tell: TellAllocation;
  readonly end: () => void;
  /** What it was told last. */
  told: string;
  /** Something may have changed that could not be read. */
  behind: boolean;
  looking: boolean;
}

export function createAllocationFeed(options: {
  /** From the cluster itself. Throws a Refusal where there is no such lease. */
  readonly allocation: (leaseId: Hex32, signal?: AbortSignal) => Promise<AllocationInfo>;
  /** As watched: a moment old at most, and good enough to tell whether anything has changed. */
  readonly watched: (leaseId: Hex32) => AllocationInfo | undefined;
  readonly nodeOf: (leaseId: Hex32) => string | undefined;
  readonly clock: Clock;
  readonly log: Log;
}): AllocationFeed {
  const { allocation, watched, nodeOf, clock, log } = options;
  const followers = new Map<Hex32, Set<Follower>>();
  let cancelBeat: (() => void) | undefined;

  /** Vouchers are the consumer's own word: their count is no news. */
  const textOf = (info: AllocationInfo): string => JSON.stringify({ ...info, vouchedSeconds: 0 });

  function news(follower: Follower, info: AllocationInfo): void {
    const text = textOf(info);
    follower.behind = false;
    if (text === follower.told) return;
    follower.told = text;
    follower.tell(info);
  }

  /** Reads what is watched as changed: a cache may be behind what was told last, and must not take it back. */
  async function look(follower: Follower): Promise<void> {
    follower.behind = true;
    if (follower.looking) return;
    follower.looking = true;
    try {
      while (follower.behind) {
        follower.behind = false;
        news(follower, await allocation(follower.leaseId));
      }
    } catch (error) {
      follower.behind = true;
      if (isGone(error)) follower.end();
      else log.debug({ leaseId: follower.leaseId, error: String(error) }, 'an allocation could not be read');
    } finally {
      follower.looking = false;
    }
  }

  function changed(leaseId: Hex32): void {
    const own = followers.get(leaseId);
    if (own === undefined) return;
    const now = watched(leaseId);
    const text = now && textOf(now);
    for (const follower of own) if (follower.told !== text) void look(follower);
  }

  async function beat(): Promise<void> {
    const [leaseId] = followers.keys();
    if (leaseId === undefined) return;
    // Each has its turn to be the question, and is read anew by it.
    const own = followers.get(leaseId)!;
    followers.delete(leaseId);
    followers.set(leaseId, own);
    const late = new AbortController();
    const cancel = clock.setTimeout(() => late.abort(new Error('no answer in time')), allocationBeatSeconds * 1000);
    try {
      const info = await allocation(leaseId, late.signal);
      for (const follower of own) news(follower, info);
    } catch (error) {
      if (!isGone(error)) {
        log.debug({ error: String(error) }, 'the cluster does not answer: nobody is told that all is well');
        return;
      }
      for (const follower of own) follower.end();
    } finally {
      cancel();
    }
    for (const all of followers.values())
      for (const follower of all) {
        if (follower.behind) void look(follower);
        else follower.tell(undefined);
      }
  }

  function beatLater(): void {
    cancelBeat = clock.setTimeout(() => {
      void beat().finally(() => {
        cancelBeat = undefined;
        if (followers.size > 0) beatLater();
      });
    }, allocationBeatSeconds * 1000);
  }

  return {
    async follow(leaseId, tell, signal) {
      signal.throwIfAborted();
      let end: () => void = () => undefined;
      const ended = new Promise<void>((resolve) => {
        end = resolve;
      });
      const follower: Follower = { leaseId, tell, end, told: '', behind: false, looking: true };
      // Before it is read: what changes meanwhile is looked at afterwards.
      const own = followers.get(leaseId) ?? new Set();
      followers.set(leaseId, own.add(follower));
      signal.addEventListener('abort', end, { once: true });
      if (cancelBeat === undefined) beatLater();
      try {
        const info = await allocation(leaseId, signal);
        const missed = follower.behind;
        news(follower, info);
        follower.looking = false;
        if (missed) void look(follower);
        await ended;
      } finally {
        signal.removeEventListener('abort', end);
        own.delete(follower);
        if (own.size === 0 && followers.get(leaseId) === own) followers.delete(leaseId);
        if (followers.size === 0) {
          cancelBeat?.();
          cancelBeat = undefined;
        }
      }
    },
    recordChanged: changed,
    nodeChanged(name) {
      for (const leaseId of followers.keys()) if (nodeOf(leaseId) === name) changed(leaseId);
    },
  };
}

const isGone = (error: unknown): boolean => error instanceof Refusal && error.reason === 'LeaseNotFound';
