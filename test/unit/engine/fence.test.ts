import { expect, test } from 'vitest';
import { UnknownOutcomeError } from '../../../operator/engine/errors.ts';
import { fenced } from '../../../operator/engine/fence.ts';
import { type KubeObject, resources } from '../../../operator/engine/types.ts';
import { fakeCluster } from '../../support/fake-cluster.ts';

const key = { namespace: 'ml', name: 'one' };
const object = (): KubeObject => ({ metadata: { ...key } });

test('who leads no more reads, and writes nothing', async () => {
  const fake = fakeCluster();
  let leads = true;
  const cluster = fenced(fake, () => leads);
  await cluster.create(resources.configMaps, object());
  leads = false;
  const before = fake.revision;
  expect(await cluster.get(resources.configMaps, key)).toMatchObject({ metadata: key });
  expect((await cluster.list(resources.configMaps)).items).toHaveLength(1);
  for (const write of [
    () => cluster.create(resources.configMaps, { metadata: { namespace: 'ml', name: 'two' } }),
    () => cluster.replace(resources.configMaps, object()),
    () => cluster.apply(resources.configMaps, object(), { fieldManager: 'test' }),
    () => cluster.patch(resources.configMaps, key, { data: { a: 'b' } }),
    () => cluster.delete(resources.configMaps, key),
    () => cluster.createSubresource(resources.pods, key, 'eviction', {}),
  ]) {
    const error = await write().catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(UnknownOutcomeError);
    expect((error as UnknownOutcomeError).neverSent).toBe(true);
  }
  expect(fake.revision).toBe(before);
});
