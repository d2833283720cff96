import { describe, expect, test } from 'vitest';
import { knownValues } from '../../../operator/sandbox/charts/known-values.ts';
import { choosePrevious, type Git } from '../../../operator/sandbox/charts/previous.ts';

const head = 'a'.repeat(40);
const before = 'b'.repeat(40);
const tagged = 'c'.repeat(40);

/** A repository by the answers that it gives. */
const repository =
  (answers: { commits?: Record<string, string>; changed?: string; tags?: Record<string, string> }): Git =>
  async ([word, ...args]) => {
    const { commits = { HEAD: head, 'HEAD^': before }, changed = '', tags = {} } = answers;
    const revision = args.at(-1)!.replace('^{commit}', '');
    if (word === 'rev-parse')
      return commits[revision] ?? { 'v0.1.0': tagged, [head]: head, [before]: before }[revision];
    if (word === 'status') return changed;
    if (word === 'describe') return tags[revision];
    throw new Error(`git ${word} is not asked`);
  };

describe('what an upgrade begins with', () => {
  test.each([
    {
      is: 'the commit before, where nothing was released',
      git: repository({}),
      called: 'bbbbbbb (the commit before)',
      commit: before,
    },
    {
      is: 'the last release',
      git: repository({ tags: { [before]: 'v0.1.0\n' } }),
      called: 'v0.1.0 (the last release)',
      commit: tagged,
    },
    {
      is: 'the release before, where the last commit is a release itself',
      git: repository({ tags: { [head]: 'v0.2.0\n', [before]: 'v0.1.0\n' } }),
      called: 'v0.1.0 (the last release)',
      commit: tagged,
    },
    {
      is: 'the last commit, where something is not committed',
      git: repository({ changed: ' M charts/operator/values.yaml\n' }),
      called: 'aaaaaaa (the last commit, which lacks what is changed here)',
      commit: head,
    },
    {
      is: 'what is asked for',
      wanted: 'v0.1.0',
      git: repository({}),
      called: 'v0.1.0 (commit ccccccc, as asked for)',
      commit: tagged,
    },
  ])('is $is', async ({ git, wanted, called, commit }) => {
    expect(await choosePrevious(git, wanted)).toMatchObject({ called, commit });
  });

  test.each([
    { where: 'outside of a repository', git: (async () => undefined) as Git, none: /no checkout/ },
    { where: 'in a checkout of one commit', git: repository({ commits: { HEAD: head } }), none: /no commit before/ },
  ])('is nothing $where, and says why', async ({ git, none }) => {
    expect(await choosePrevious(git)).toEqual({ none: expect.stringMatching(none) });
  });

  test('is never something else than what was asked for', async () => {
    await expect(choosePrevious(repository({}), 'v9')).rejects.toThrow('--from v9: Git knows no such commit here');
  });
});

describe('values for an earlier chart', () => {
  const schema = {
    properties: {
      image: { properties: { tag: {} }, additionalProperties: false },
      labels: { additionalProperties: { properties: { a: {} }, additionalProperties: false } },
      rails: { items: { properties: { chainId: {} }, additionalProperties: false } },
      open: { properties: {} },
    },
    additionalProperties: false,
  };
  const known = { image: { tag: '1' }, labels: { x: { a: 1 } }, rails: [{ chainId: 1 }], open: { any: true } };

  test('are the same where it knows them all', () => {
    expect(knownValues(schema, known)).toEqual({ values: known, dropped: [] });
  });

  test('lose what its schema would refuse, at any depth, and say so', () => {
    const more = {
      image: { tag: '1', digest: 'd' },
      labels: { x: { a: 1, b: 2 } },
      rails: [{ chainId: 1, escrow: 'e' }],
      open: { any: true },
      constructor: 1,
    };
    expect(knownValues(schema, more)).toEqual({
      values: known,
      dropped: ['image.digest', 'labels.x.b', 'rails[0].escrow', 'constructor'],
    });
  });
});
