import { X509Certificate } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { createAuthority, openAuthority } from '../../../operator/sandbox/clusters/certificates.ts';
import { gpuLabels, H100, RTX_4090, simulatedGpus } from '../../../operator/sandbox/clusters/gpus.ts';
import { archiveOf, layer, tar } from '../../../operator/sandbox/clusters/image-archive.ts';

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

/** Names, in order, with type and mode, of a tar archive; contents by name. */
function entriesOf(archive: Buffer) {
  const entries: { name: string; type: string; mode: number; linkTo: string; data: Buffer }[] = [];
  for (let at = 0; archive[at] !== 0; ) {
    const word = (from: number, length: number) =>
      archive.toString('utf8', at + from, at + from + length).replace(/\0.*$/, '');
    const size = Number.parseInt(word(124, 12), 8);
    entries.push({
      name: word(0, 100),
      type: word(156, 1),
      mode: Number.parseInt(word(100, 8), 8),
      linkTo: word(157, 100),
      data: archive.subarray(at + 512, at + 512 + size),
    });
    at += 512 + Math.ceil(size / 512) * 512;
  }
  return entries;
}

describe('an archive of images', () => {
  const base = layer([{ path: 'bin/sh', mode: 0o755, data: Buffer.from('x') }]);
  const top = layer([{ path: 'app', mode: 0o4755, data: Buffer.from('y') }]);
  const images = [
    { name: 'a:1', layers: [base], run: { Cmd: ['sh'] } },
    { name: 'b:1', layers: [base, top], run: { Env: ['A=1'], User: '1000' } },
  ];

  it('holds a shared layer once, and names each image and its configuration', () => {
    const entries = entriesOf(archiveOf(images));
    expect(entries.filter(({ name }) => name.endsWith('/layer.tar'))).toHaveLength(2);
    const read = (name: string) => JSON.parse(entries.find((entry) => entry.name === name)!.data.toString());
    const manifest = read('manifest.json');
    expect(manifest).toMatchObject([{ RepoTags: ['a:1'] }, { RepoTags: ['b:1'] }]);
    expect(manifest[1].Layers[0]).toBe(manifest[0].Layers[0]);
    const config = read(manifest[1].Config);
    expect(config.config).toEqual({ Env: ['A=1'], User: '1000' });
    expect(config.rootfs.diff_ids).toEqual(manifest[1].Layers.map((l: string) => `sha256:${l.split('/')[0]}`));
    expect(read(manifest[0].Config).config.Env).toEqual([expect.stringMatching(/^PATH=.*:\/bin$/)]);
    expect(archiveOf(images).equals(archiveOf(images))).toBe(true);
  });

  it('has in each layer the folders that its files are in, and keeps their modes', () => {
    expect(
      entriesOf(
        layer([
          { path: 'usr/bin/env', mode: 0o777, linkTo: '../../bin/env' },
          { path: 'usr/bin/nnp', mode: 0o6755, data: Buffer.from('x') },
          { path: 'tmp/', mode: 0o1777 },
        ]),
      ).map(({ name, type, mode, linkTo }) => [name, type, mode.toString(8), linkTo]),
    ).toEqual([
      ['tmp/', '5', '1777', ''],
      ['usr/', '5', '755', ''],
      ['usr/bin/', '5', '755', ''],
      ['usr/bin/env', '2', '777', '../../bin/env'],
      ['usr/bin/nnp', '0', '6755', ''],
    ]);
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
