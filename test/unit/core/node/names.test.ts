import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { remoteObjectName, remotePodName, virtualNodeName } from '../../../../operator/core/node/names.ts';
import { sha256Hex } from '../../../../operator/core/node/sha256.ts';

const label = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;

test('the hash is SHA-256, for any text', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme', maxLength: 300 }), (text) => {
      expect(sha256Hex(text)).toBe(createHash('sha256').update(text, 'utf8').digest('hex'));
    }),
  );
  expect(sha256Hex('')).toBe('e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');
});

describe('names at the provider', () => {
  test('are DNS labels, whatever the name here', () => {
    fc.assert(
      fc.property(fc.string({ maxLength: 253 }), fc.uuid(), (name, uid) => {
        expect(remotePodName(name, uid)).toMatch(label);
        expect(remoteObjectName('Secret', 'ns', name)).toMatch(label);
        expect(virtualNodeName(name, uid)).toMatch(label);
      }),
    );
  });

  test('tell a re-created pod from its predecessor', () => {
    expect(remotePodName('web-0', 'a')).not.toBe(remotePodName('web-0', 'b'));
    expect(remotePodName('web-0', 'a')).toBe(remotePodName('web-0', 'a'));
  });

  test('tell namespaces and kinds apart, also where the readable part is the same', () => {
    const names = [
      remoteObjectName('ConfigMap', 'a', 'b'),
      remoteObjectName('Secret', 'a', 'b'),
      remoteObjectName('Secret', 'a-b', ''),
      remoteObjectName('Secret', 'b', 'a'),
      remoteObjectName('Secret', 'a', 'b.'),
    ];
    expect(new Set(names).size).toBe(names.length);
  });

  test('of a node start with gpu- and name the lease', () => {
    expect(virtualNodeName('train', 'u')).toMatch(/^gpu-train-[0-9a-f]{10}$/);
    expect(virtualNodeName(`${'x'.repeat(45)}-yy`, 'u')).toMatch(/^gpu-x{45}-[0-9a-f]{10}$/);
  });
});
