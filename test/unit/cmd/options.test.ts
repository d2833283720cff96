import { afterEach, describe, expect, it, vi } from 'vitest';
import { choice, integer, pairs, parseOptions, portRange, text, UsageError } from '../../../operator/cmd/options.ts';

const declared = {
  kubeconfig: text('Kubeconfig of the cluster.', 'FILE', 'in-cluster'),
  keyFile: text('Key of the wallet.', 'FILE'),
  periodSeconds: integer('How often.', 'SECONDS', 1, 600, 60),
  chain: pairs('Chain and its endpoints.', 'ID=URL[,URL]'),
  logLevel: choice('How much is logged.', ['debug', 'info'], 'info'),
  ports: portRange('Where to listen.', '20000-29999'),
};
const parse = (args: string[], env: Record<string, string> = {}) =>
  parseOptions('operator --key-file FILE', declared, args, env);

afterEach(() => vi.restoreAllMocks());

describe('options', () => {
  it('have their defaults', () => {
    expect(parse([])).toEqual({
      kubeconfig: 'in-cluster',
      keyFile: undefined,
      periodSeconds: 60,
      chain: [],
      logLevel: 'info',
      ports: { from: 20_000, to: 29_999 },
    });
  });

  it('are given as flags, with a space or an equals sign', () => {
    expect(parse(['--kubeconfig', 'a', '--period-seconds=5', '--log-level=debug'])).toMatchObject({
      kubeconfig: 'a',
      periodSeconds: 5,
      logLevel: 'debug',
    });
  });

  it('are given several times where that makes sense', () => {
    expect(parse(['--chain', '1=http://a', '--chain=2=http://b?c=d'])?.chain).toEqual([
      ['1', 'http://a'],
      ['2', 'http://b?c=d'],
    ]);
  });

  it('come from the environment when there is no flag', () => {
    const env = { GPULEASE_PERIOD_SECONDS: '7', GPULEASE_CHAIN: '1=http://a  2=http://b', GPULEASE_KEY_FILE: 'k' };
    expect(parse([], env)).toMatchObject({
      periodSeconds: 7,
      keyFile: 'k',
      chain: [
        ['1', 'http://a'],
        ['2', 'http://b'],
      ],
    });
  });

  it('follow the flag rather than the environment', () => {
    const env = { GPULEASE_PERIOD_SECONDS: '7', GPULEASE_CHAIN: '1=http://a' };
    expect(parse(['--period-seconds', '9', '--chain', '2=http://b'], env)).toMatchObject({
      periodSeconds: 9,
      chain: [['2', 'http://b']],
    });
  });
});

describe('a wrong option names the flag, what was given and what is allowed', () => {
  const wrong: Record<string, [string[], Record<string, string>, string]> = {
    'a number too small': [
      ['--period-seconds', '0'],
      {},
      '--period-seconds must be a whole number from 1 to 600; given: 0',
    ],
    'a number too large': [
      ['--period-seconds=601'],
      {},
      '--period-seconds must be a whole number from 1 to 600; given: 601',
    ],
    'no number': [
      ['--period-seconds', 'soon'],
      {},
      '--period-seconds must be a whole number from 1 to 600; given: soon',
    ],
    'half a number': [['--period-seconds', '1.5'], {}, 'must be a whole number from 1 to 600; given: 1.5'],
    'a number in another notation': [
      ['--period-seconds', '1e2'],
      {},
      'must be a whole number from 1 to 600; given: 1e2',
    ],
    'a word that is not known': [['--log-level', 'loud'], {}, '--log-level must be one of debug, info; given: loud'],
    'a pair without a value': [['--chain', '1='], {}, '--chain must be ID=URL[,URL]; given: 1='],
    'a pair without a key': [['--chain', '=http://a'], {}, '--chain must be ID=URL[,URL]; given: =http://a'],
    'a pair that is none': [['--chain', 'http://a'], {}, '--chain must be ID=URL[,URL]; given: http://a'],
    'ports the wrong way round': [['--ports', '9-8'], {}, '--ports must be two ports such as 20000-29999; given: 9-8'],
    'a port beyond all': [['--ports', '1-65536'], {}, 'must be two ports such as 20000-29999; given: 1-65536'],
    'one port': [['--ports', '80'], {}, 'must be two ports such as 20000-29999; given: 80'],
    'a flag that is not known': [['--kubeconfg', 'a'], {}, "Unknown option '--kubeconfg'"],
    'a flag without its value': [['--kubeconfig'], {}, "'--kubeconfig <value>' argument missing"],
    'what is no flag': [['now'], {}, "Unexpected argument 'now'"],
    'a wrong number in the environment': [
      [],
      { GPULEASE_PERIOD_SECONDS: 'soon' },
      '--period-seconds must be a whole number from 1 to 600; given: soon',
    ],
  };
  it.each(Object.entries(wrong))('%s', (_, [args, env, says]) => {
    const failing = () => parse(args, env);
    expect(failing).toThrow(UsageError);
    expect(failing).toThrow(says);
  });

  it('and shows no more of it than a line', () => {
    expect(() => parse(['--log-level', 'x'.repeat(500)])).toThrow(/^.{0,160}$/);
  });
});

describe('the help', () => {
  it('is printed, tells everything, and parses nothing', () => {
    const written: string[] = [];
    vi.spyOn(process.stdout, 'write').mockImplementation((chunk) => written.push(String(chunk)) > 0);
    expect(parse(['--help', '--period-seconds', 'soon'])).toBeUndefined();
    const help = written.join('');
    expect(help).toMatch(/^operator --key-file FILE\n\n/);
    expect(help).toMatch(/--period-seconds SECONDS\s+How often\. \(default: 60\)/);
    expect(help).toMatch(/--chain ID=URL\[,URL\]\s+Chain and its endpoints\. May be given several times\./);
    expect(help).toMatch(/--log-level WORD\s+How much is logged\. One of debug, info\. \(default: info\)/);
    expect(help).toMatch(/--key-file FILE\s+Key of the wallet\.\n/);
    expect(help).toContain('GPULEASE_KUBECONFIG');
  });

  it.each(['-h', '--help'])('answers to %s', (flag) => {
    vi.spyOn(process.stdout, 'write').mockImplementation(() => true);
    expect(parse([flag])).toBeUndefined();
  });
});
