import { describe, expect, it } from 'vitest';
import { StoreConflict } from '../../../../operator/adapters/chain/store.ts';
import { createSecretStore } from '../../../../operator/adapters/kube/secret-store.ts';
import { UnknownOutcomeError } from '../../../../operator/engine/errors.ts';
import { resources } from '../../../../operator/engine/types.ts';
import { manualClock } from '../../../support/clock.ts';
import { fakeCluster } from '../../../support/fake-cluster.ts';

const key = { namespace: 'system', name: 'outbox' };

function start(options = {}) {
  const cluster = fakeCluster({ clock: manualClock() });
  const open = () => createSecretStore<{ nonce: number }>({ cluster, ...key, labels: { of: 'us' }, ...options });
  return { cluster, open, store: open() };
}

describe('a store in a Secret', () => {
  it('begins empty, and remembers', async () => {
    const { cluster, open, store } = start();
    const empty = await store.load();
    expect(empty.value).toBeUndefined();
    const first = await store.save({ nonce: 1 }, empty.version);
    const second = await store.save({ nonce: 2 }, first);
    expect(await open().load()).toEqual({ value: { nonce: 2 }, version: second });
    expect(cluster.object(resources.secrets, key)?.metadata.labels).toEqual({ of: 'us' });
  });

  it('lets one of two writers win, and tells the other', async () => {
    const { open, store } = start();
    const other = open();
    const { version } = await store.load();
    await store.save({ nonce: 1 }, version);
    await expect(other.save({ nonce: 9 }, version)).rejects.toBeInstanceOf(StoreConflict);
    const seen = await other.load();
    await other.save({ nonce: 2 }, seen.version);
    await expect(store.save({ nonce: 3 }, seen.version)).rejects.toBeInstanceOf(StoreConflict);
    expect((await store.load()).value).toEqual({ nonce: 2 });
  });

  it('does not bring back what somebody deleted', async () => {
    const { cluster, store } = start();
    const version = await store.save({ nonce: 1 }, '');
    await cluster.delete(resources.secrets, key);
    await expect(store.save({ nonce: 2 }, version)).rejects.toBeInstanceOf(StoreConflict);
    expect((await store.load()).value).toBeUndefined();
  });

  it('leaves a lost answer unknown; the next load tells', async () => {
    const { cluster, store } = start();
    const version = await store.save({ nonce: 1 }, '');
    cluster.failNext({ method: 'PATCH', fail: 'answer-lost' });
    await expect(store.save({ nonce: 2 }, version)).rejects.toBeInstanceOf(UnknownOutcomeError);
    expect((await store.load()).value).toEqual({ nonce: 2 });
  });

  it('refuses what is too large, before sending it', async () => {
    const { cluster, store } = start({ maxBytes: 20 });
    await expect(store.save({ nonce: 1e25, more: 'x'.repeat(50) } as { nonce: number }, '')).rejects.toThrow(
      /bytes are more than the 20/,
    );
    expect(cluster.requests).toHaveLength(0);
  });

  it.each([
    ['another’s Secret', { data: { other: 'eA==' } }, /has no value.json/],
    ['a damaged one', { data: { 'value.json': Buffer.from('secret-nonsense').toString('base64') } }, /cannot be read/],
  ])('stops at %s, without repeating what is in it', async (_, secret, message) => {
    const { cluster, store } = start();
    cluster.seed(resources.secrets, { metadata: { ...key }, ...secret });
    const error = await store.load().catch((e) => e);
    expect(error).toMatchObject({ name: 'UnreadableSecret', terminal: true });
    expect(error.message).toMatch(message);
    expect(String(error.stack)).not.toContain('secret-nonsense');
  });
});
