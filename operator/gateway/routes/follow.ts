/**
 * An allocation, followed: an event with the allocation for each change, a comment every few seconds for "as it was". So silence
 * means that nobody is there, and a consumer need not ask again and again. `text/event-stream` is what proxies pass on as it comes
 * (WHATWG HTML, 9.2 Server-sent events).
 */
import { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import type { AllocationInfo } from '../../api/gateway.ts';
import type { Hex32 } from '../../api/messages.ts';
import { Refusal } from '../../core/allocation/refusal.ts';
import type { GatewayService } from '../service.ts';
import { createBudget } from '../tunnels/budget.ts';

export const eventStream = 'text/event-stream';

export const wantsEvents = (accept: string | undefined): boolean =>
  (accept ?? '').split(',').some((one) => one.split(';', 1)[0]?.trim().toLowerCase() === eventStream);

/** Then the token is to be shown anew. */
const longestSeconds = 600;
/** An operator has one open, and a second while it changes its leader. */
const mostOfLease = 8;
const mostOverall = 20_000;
/** What a caller may leave unread. */
const mostUnreadBytes = 64 * 1024;

export interface Followed {
  /** Resolves once there is something to say: before that, a Refusal is thrown that can still be told as one. */
  open(leaseId: Hex32): Promise<Readable>;
  end(): void;
}

export function createFollowed(service: Pick<GatewayService, 'followAllocation'>): Followed {
  const budget = createBudget(mostOfLease, mostOverall);
  const stopping = new AbortController();
  return {
    open(leaseId) {
      if (!budget.take(leaseId))
        throw new Refusal(429, 'this lease is followed often enough: end some', { retryAfterSeconds: 5 });
      const over = new AbortController();
      const events = new Readable({ read: () => undefined, highWaterMark: mostUnreadBytes });
      events.once('close', () => {
        over.abort(new Error('the caller went away'));
        budget.give(leaseId);
      });
      return new Promise((resolve, reject) => {
        const tell = (info: AllocationInfo | undefined) => {
          events.push(info === undefined ? ':\n\n' : `data: ${JSON.stringify(info)}\n\n`);
          if (events.readableLength > mostUnreadBytes) events.destroy(new Error('the caller does not read'));
          resolve(events);
        };
        const signal = AbortSignal.any([over.signal, stopping.signal]);
        void sleep(longestSeconds * 1000, undefined, { signal, ref: false }).then(
          () => over.abort(new Error('long enough')),
          () => undefined,
        );
        service.followAllocation(leaseId, tell, signal).then(
          () => events.push(null),
          (error: unknown) => {
            events.destroy();
            reject(error);
          },
        );
      });
    },
    end: () => stopping.abort(new Error('the gateway stops')),
  };
}
