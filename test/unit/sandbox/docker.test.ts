import { expect, test } from 'vitest';
import { capabilitiesMissing, withoutPrivileged } from '../../../operator/sandbox/kind/docker.ts';

test.each([
  { machine: 'with all of them', bounding: '1ffffffffff', missing: [] },
  { machine: 'without SYS_RESOURCE', bounding: '1fffeffffff', missing: ['SYS_RESOURCE'] },
  { machine: 'without the first and the last', bounding: '0fffffffffe', missing: ['CHOWN', 'CHECKPOINT_RESTORE'] },
])('a machine $machine lacks $missing', ({ bounding, missing }) => {
  expect(capabilitiesMissing(BigInt(`0x${bounding}`), 40)).toEqual(missing);
});

test('an older kernel lacks no capability that it does not know', () => {
  expect(capabilitiesMissing((1n << 38n) - 1n, 37)).toEqual([]);
});

test('docker run --privileged asks for all but what the machine lacks', () => {
  const args = withoutPrivileged(['run', '--name', 'n', '--privileged', 'image'], ['SYS_RESOURCE'], false);
  expect(args).not.toContain('--privileged');
  expect(args.join(' ')).toMatch(/^run --name n --cap-add ALL --cap-drop SYS_RESOURCE .* image$/);
  expect(args).not.toContain('/dev/fuse');
});

test('docker exec --privileged has what its container has', () => {
  expect(withoutPrivileged(['exec', '--privileged', 'n', 'ls'], ['SYS_RESOURCE'], true)).toEqual(['exec', 'n', 'ls']);
});

test('other words of docker stay as they are', () => {
  expect(withoutPrivileged(['ps', '-a'], ['SYS_RESOURCE'], true)).toEqual(['ps', '-a']);
});
