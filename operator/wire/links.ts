/** The links that gateways have made to us, by provider; and connections over them. */
import { type Connected, type LinkOut, NotConnected } from './link.ts';
import type { Timing } from './timing.ts';

/** Replicas of a gateway, and links that are being replaced. */
const maxLinksOfProvider = 8;
/** Connections that wait until a provider is back. */
const maxWaiting = 2048;

export interface LinkState {
  readonly links: number;
  readonly connections: number;
  /** Where the newest comes from. */
  readonly from?: string;
  readonly since?: Date;
}

export interface Links {
  /** Takes it; an earlier link of the same process ends, since that process has given it up. */
  add(provider: string, instance: string, from: string, link: LinkOut): void;
  /** Waits for a link when there is none. Rejects with NotConnected. */
  connect(provider: string, from: string, withinSeconds: number): Promise<Connected>;
  state(provider: string): LinkState;
  providers(): readonly string[];
  /** Ends those of a provider that may not link any more. */
  end(provider: string): void;
  drainAll(): void;
  endAll(): void;
}

interface Held {
  readonly instance: string;
  readonly from: string;
  readonly link: LinkOut;
  readonly since: Date;
}

export interface LinksOptions {
  readonly clock: Timing;
  readonly now: () => Date;
  /** A provider has its first link, or lost its last. */
  readonly onChange?: (provider: string, up: boolean) => void;
  /** Told to who finds no link. */
  readonly absent?: string;
}

export function createLinks({ clock, now, onChange, absent }: LinksOptions): Links {
  /** Newest first. */
  const held = new Map<string, Held[]>();
  const waiting = new Map<string, Set<() => void>>();
  let waiters = 0;

  const usable = (provider: string) => held.get(provider)?.find(({ link }) => link.usable);

  function remove(provider: string, one: Held): void {
    const left = (held.get(provider) ?? []).filter((other) => other !== one);
    if (left.length > 0) held.set(provider, left);
    else if (held.delete(provider)) onChange?.(provider, false);
  }

  function appears(provider: string, withinMs: number): Promise<boolean> {
    if (withinMs <= 0 || waiters >= maxWaiting) return Promise.resolve(false);
    waiters += 1;
    const those = waiting.get(provider) ?? new Set();
    waiting.set(provider, those);
    return new Promise((resolve) => {
      const done = (came: boolean) => {
        waiters -= 1;
        cancel();
        those.delete(wake);
        if (those.size === 0 && waiting.get(provider) === those) waiting.delete(provider);
        resolve(came);
      };
      const wake = () => done(true);
      const cancel = clock.setTimeout(() => done(false), withinMs);
      those.add(wake);
    });
  }

  return {
    add(provider, instance, from, link) {
      const before = held.get(provider) ?? [];
      const one: Held = { instance, from, link, since: now() };
      const [replaced, kept] = [
        before.filter((other) => other.instance === instance),
        before.filter((other) => other.instance !== instance),
      ];
      const all = [one, ...kept];
      const tooMany = all.splice(maxLinksOfProvider);
      held.set(provider, all);
      for (const { link: old } of [...replaced, ...tooMany]) old.end();
      void link.ended.then(() => remove(provider, one));
      if (before.length === 0) onChange?.(provider, true);
      for (const wake of [...(waiting.get(provider) ?? [])]) wake();
    },

    async connect(provider, from, withinSeconds) {
      const until = clock.monotonicMs() + withinSeconds * 1000;
      const leftMs = () => until - clock.monotonicMs();
      let why = absent ?? 'nobody has dialled in for this provider';
      for (;;) {
        const one = usable(provider);
        if (!one) {
          if (await appears(provider, leftMs())) continue;
          throw new NotConnected(why);
        }
        try {
          return await one.link.connect(from, Math.max(0.1, leftMs() / 1000));
        } catch (error) {
          // A link that has died in between is no answer; a refusal on one that lives is.
          if (one.link.usable || leftMs() <= 0) throw error;
          why = `the link was cut: ${(error as Error).message}`;
        }
      }
    },

    state(provider) {
      const all = held.get(provider) ?? [];
      const connections = all.reduce((sum, { link }) => sum + link.connections, 0);
      const first = all[0];
      return { links: all.length, connections, ...(first ? { from: first.from, since: first.since } : {}) };
    },
    providers: () => [...held.keys()],
    end(provider) {
      for (const { link } of held.get(provider) ?? []) link.end();
    },
    drainAll() {
      for (const all of held.values()) for (const { link } of all) link.drain();
    },
    endAll() {
      for (const all of [...held.values()]) for (const { link } of all) link.end();
    },
  };
}
