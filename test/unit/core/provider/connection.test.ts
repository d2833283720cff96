/** What the status of a provider says of the way to it. */
import { expect, test } from 'vitest';
import { connectionOf, type SeenRoute } from '../../../../operator/core/provider/connection.ts';

const since = new Date('2026-01-01T00:00:00.123Z');
test.each<[string, SeenRoute, object]>([
  ['a direct one has no link', { via: 'Direct' }, { via: 'Direct', state: 'OnDemand' }],
  [
    'a link that stands',
    { via: 'Reverse', up: true, since, through: '192.0.2.7', links: 2 },
    { via: 'Reverse', state: 'Up', since: '2026-01-01T00:00:00Z', through: '192.0.2.7', links: 2 },
  ],
  [
    'one that does not, and why',
    { via: 'Relay', up: false, since, through: 'relay.example.com', links: 0, why: 'refused' },
    { via: 'Relay', state: 'Down', through: 'relay.example.com', links: 0, message: 'refused' },
  ],
  [
    'a why that does not end',
    { via: 'Relay', up: false, why: 'x'.repeat(5000) },
    { via: 'Relay', state: 'Down', message: 'x'.repeat(512) },
  ],
])('%s', (_, route, status) => expect(connectionOf(route)).toEqual(status));
