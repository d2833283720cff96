import { X509Certificate } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { createAuthority, openAuthority } from '../../../operator/sandbox/clusters/certificates.ts';
import { gpuLabels, H100, RTX_4090, simulatedGpus } from '../../../operator/sandbox/clusters/gpus.ts';
import { tar } from '../../../operator/sandbox/clusters/images.ts';

describe('simulated GPUs', () => {
  it('have the same UUIDs whenever their node is started, and others on another node', () => {
    const [first, second] = simulatedGpus('node-a', H100, 2);
    expect(
      simulatedGpus('node-a', H100, 8)
        .map((gpu) => gpu.uuid)
        .slice(0, 2),
    ).toEqual([first?.uuid, second?.uuid]);
    expect(simulatedGpus('node-b', H100, 1)[0]?.uuid).not.toBe(first?.uuid);
    expect(first?.uuid).toMatch(/^GPU-[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  });

  it('put labels on their node that Kubernetes accepts', () => {
    for (const model of [H100, RTX_4090]) {
      const labels = gpuLabels(simulatedGpus('n', model, 4), { region: 'eu-north', zone: 'eu-north-1' });
      for (const [key, value] of Object.entries(labels)) {
        expect(key).toMatch(/^([a-z0-9.-]+\/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$/);
        expect(value).toMatch(/^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$/);
      }
      expect(labels['nvidia.com/gpu.count']).toBe('4');
    }
  });

  it('are none on a node without GPUs, which then says nothing about NVIDIA', () => {
    expect(Object.keys(gpuLabels([], { region: 'r', zone: 'z' })).filter((key) => key.startsWith('nvidia'))).toEqual(
      [],
    );
  });
});

describe('an authority', () => {
  const now = new Date('2026-01-01T00:00:00Z');

  it('issues certificates that chain to it, with user, groups and hosts', async () => {
    const authority = await createAuthority('test-ca', now);
    const client = await authority.issue({ commonName: 'alice', organizations: ['a', 'b'], use: 'client' });
    const certificate = new X509Certificate(client.certificatePem);
    expect(certificate.verify(new X509Certificate(authority.caPem).publicKey)).toBe(true);
    expect(certificate.subject).toBe('O=a\nO=b\nCN=alice');
    const server = await authority.issue({ commonName: 's', hosts: ['node', '10.0.0.1'], use: 'server' });
    expect(new X509Certificate(server.certificatePem).subjectAltName).toBe('DNS:node, IP Address:10.0.0.1');
  });

  it('can be read back from its files', async () => {
    const made = await createAuthority('test-ca', now);
    const read = await openAuthority(made.caPem, made.caKeyPem, now);
    const issued = await read.issue({ commonName: 'x', use: 'client' });
    expect(new X509Certificate(issued.certificatePem).verify(new X509Certificate(made.caPem).publicKey)).toBe(true);
  });
});

describe('a tar archive', () => {
  it('is the same for the same input, padded to blocks', () => {
    const entries = [
      { path: 'a/', mode: 0o755 },
      { path: 'a/b', mode: 0o644, data: Buffer.from('x') },
    ];
    const archive = tar(entries);
    expect(archive.equals(tar(entries))).toBe(true);
    expect(archive.length).toBe(512 * 5);
  });

  it('refuses names that its headers cannot hold, rather than cutting them', () => {
    expect(() => tar([{ path: 'x'.repeat(101), mode: 0o644 }])).toThrow('too long');
  });
});
