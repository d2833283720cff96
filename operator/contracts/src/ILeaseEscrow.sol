// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title LeaseEscrow: holds the deposit of a GPU lease and pays for the seconds that were served.
/// @notice
/// The life of an escrow:  open → (topUp, settle)* → closed.  It is opened by the consumer with a quote that the
/// provider signed, and closed in one of four ways:
///
///   close              by provider or payee, with a voucher that the consumer marked as its last: at once
///   closeWithRelease   by the consumer, with the provider's signature: at once
///   providerClose      by the provider, who gives up what was not settled: at once
///   finalize           by anyone, a claim window after the consumer asked (requestClose) or the term ended
///
/// Money: seconds are the only input. What is due follows from them, in whole and cumulatively:
///
///   seconds = min(signed, elapsed, maxSeconds)        elapsed = min(now, closingAt, endsAt) − openedAt
///   claimed = min(floor(seconds · pricePerGpuHour · gpus / 3600), deposit)
///   fee     = floor(claimed · feeBps / 10000)         referrer's part = floor(fee · referrerBps / 10000)
///
/// so that neither the number of settlements nor their order changes what anyone gets. Seconds that were counted stay
/// counted: when the deposit did not cover them, a later top-up pays them, and no voucher has to be shown again.
///
/// Anyone may add to a deposit. What others put in is a reserve: it is spent after all that the consumer put in, first come
/// first spent, and what is left of it goes back to who paid it. A stranger's top-up can thus neither cost the consumer
/// anything nor give it anything but seconds, and costs the stranger what was used of it.
///
/// Nothing is pushed: what is earned or refunded waits as a credit until its owner withdraws it, so that a receiver whom a
/// token refuses harms nobody else. Tokens do not mix: one that misbehaves harms leases paid in it. There is no debt, no oracle, no upgrade, and no owner of anyone's money: the contract's
/// owner may allow and disallow tokens for new escrows and pause new escrows. Exits cannot be paused.
///
/// A session key is checked as a plain key, never by asking a contract: a voucher once given cannot be taken back.
interface ILeaseEscrow {
    /// @notice Why an escrow was closed. `Open` (0) while it is not. From `ProviderUnpaid` on, the provider names it.
    enum CloseReason {
        Open,
        LastVoucher,
        Released,
        Expired,
        ConsumerRequested,
        ProviderUnpaid,
        ProviderCapacityLost,
        ProviderMaintenance,
        ProviderPolicy,
        ProviderOther
    }

    /// @notice Why `settleMany` left an item out.
    enum Skipped {
        None,
        LeaseNotFound,
        LeaseClosed,
        BadSignature
    }

    /// @notice An offer to one consumer for one lease, signed by the provider.
    struct Quote {
        /// Network that the quote was made for: must be this contract's.
        bytes32 networkId;
        /// Signs the quote, serves the lease. A key, or a contract with ERC-1271.
        address provider;
        /// May withdraw what is earned.
        address payee;
        /// The only account that may open.
        address consumer;
        /// keccak256(abi.encode(clusterUID, leaseUID, attempt)): one escrow per consumer and leaseRef, for ever.
        bytes32 leaseRef;
        address token;
        /// Base units for one GPU for one hour, fee included. At most 2^96 − 1.
        uint128 pricePerGpuHour;
        uint32 gpus;
        /// The smallest deposit buys this many seconds.
        uint32 minSeconds;
        /// At most this many seconds are ever billed.
        uint32 maxSeconds;
        /// How long the provider may take before it serves: extends the end, never the bill.
        uint32 startTimeoutSeconds;
        /// The provider stops serving when so many seconds are unpaid. Promised off chain, recorded by the quote's hash.
        uint32 graceSeconds;
        /// 0 OnDemand, 1 Spot. Recorded by the quote's hash.
        uint8 capacityType;
        /// Hash of what is promised. Recorded by the quote's hash, repeated in the event.
        bytes32 specHash;
        /// Commitment of the consumer, from which checkers are drawn. Recorded by the quote's hash.
        bytes32 saltCommit;
        /// Earns a part of the platform fee; zero for nobody.
        address referrer;
        /// At most half of the fee: whoever writes quotes can name itself, and shall not be rid of the fee by it.
        uint16 referrerBps;
        /// The escrow must be opened before this second.
        uint64 expiresAt;
        /// The provider may cancel an unused quote by it.
        uint256 nonce;
    }

    /// @notice "The lease was served so many seconds in all", signed by the session key.
    struct Voucher {
        bytes32 leaseId;
        uint32 servedSeconds;
        /// The consumer will sign no more: provider or payee may close.
        bool last;
    }

    struct SignedVoucher {
        Voucher voucher;
        bytes signature;
    }

    /// @notice "I ask for no more than so many seconds", signed by the provider.
    struct Release {
        bytes32 leaseId;
        uint32 servedSeconds;
    }

    /// @notice An EIP-2612 permit for this contract.
    struct Permit {
        uint256 value;
        uint256 deadline;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// @notice An EIP-3009 authorization of the quote's consumer to this contract. Its nonce is `authorizationNonce` of the
    /// quote and the session key, its value the deposit: who signs it has agreed to exactly this opening.
    struct Authorization {
        uint256 validAfter;
        uint256 validBefore;
        uint8 v;
        bytes32 r;
        bytes32 s;
    }

    /// @notice What somebody other than the consumer put in, in one piece.
    struct Sponsorship {
        /// Zero once its refund was credited.
        address sponsor;
        uint96 amount;
        /// What `refundSponsor` would credit: zero before the close.
        uint96 refundable;
    }

    /// @notice All there is to know about one escrow; its final numbers stay readable after the close.
    struct Lease {
        address consumer;
        address signer;
        address provider;
        address payee;
        address token;
        address referrer;
        uint16 referrerBps;
        /// Snapshot at open: a later change of the token's fee does not reach this lease.
        uint16 feeBps;
        uint32 gpus;
        uint32 maxSeconds;
        uint96 pricePerGpuHour;
        /// Everything that was put in, by whomever.
        uint96 deposit;
        /// Seconds counted so far: the highest that was shown, after the caps.
        uint32 servedSeconds;
        /// Base units claimed for them, fee included.
        uint96 claimed;
        /// Part of `claimed` that is platform fee.
        uint96 feeTaken;
        /// deposit − claimed, once closed: the consumer's, and what is left of others' money theirs.
        uint96 refunded;
        uint40 openedAt;
        uint40 endsAt;
        /// When billing stopped, at the latest `endsAt`; zero while nobody asked for it.
        uint40 closingAt;
        CloseReason closeReason;
        /// EIP-712 digest of the quote that opened it.
        bytes32 quoteHash;
    }

    /// @notice Sums over all leases of one token: deposited = paid + fee + refunded + held, always, and the contract's
    /// balance is deposited − withdrawn, unless somebody sent it tokens outside of any lease.
    struct Totals {
        uint256 deposited;
        /// Credited to payees.
        uint256 paid;
        /// Credited to fee recipient and referrers.
        uint256 fee;
        /// Credited to consumers and sponsors.
        uint256 refunded;
        /// Still inside open leases, or a sponsor's and not yet credited.
        uint256 held;
        /// Credits that left the contract.
        uint256 withdrawn;
    }

    struct TokenRule {
        bool allowed;
        uint16 feeBps;
    }

    event LeaseOpened(
        bytes32 indexed leaseId,
        address indexed consumer,
        address indexed provider,
        address token,
        uint256 deposit,
        uint256 pricePerGpuHour,
        uint256 gpus,
        uint256 endsAt,
        bytes32 specHash,
        bytes32 quoteHash
    );
    event LeaseToppedUp(bytes32 indexed leaseId, address indexed from, uint256 amount, uint256 deposit);
    /// @notice `paid` and `fee` are what this settlement credited, not the lease's sums.
    event LeaseSettled(bytes32 indexed leaseId, uint256 servedSeconds, uint256 paid, uint256 fee);
    event SettleSkipped(bytes32 indexed leaseId, Skipped reason);
    event LeaseCloseRequested(bytes32 indexed leaseId, address indexed actor, uint256 closingAt);
    /// @notice `paid`, `fee` and `refunded` are the lease's sums; together they are its deposit.
    event LeaseClosed(
        bytes32 indexed leaseId,
        address indexed actor,
        CloseReason reason,
        uint256 servedSeconds,
        uint256 paid,
        uint256 fee,
        uint256 refunded
    );
    event SponsorRefunded(bytes32 indexed leaseId, address indexed sponsor, uint256 amount);
    event QuoteCancelled(address indexed provider, uint256 nonce);
    event Withdrawn(address indexed token, address indexed account, address to, uint256 amount);
    event TokenRuleChanged(address indexed token, bool allowed, uint256 feeBps);
    event OpensPaused(bool paused);

    /// @notice New escrows are paused by the contract's owner. Try later.
    error OpensArePaused();
    /// @notice The caller may not do this.
    error NotAuthorized(address caller);
    error WrongNetwork(bytes32 networkId);
    error QuoteExpired(uint256 expiresAt);
    error QuoteIsCancelled(address provider, uint256 nonce);
    /// @notice A term of the quote makes no sense, or is too large to be kept.
    error InvalidTerms();
    error TokenNotAllowed(address token);
    /// @notice The signature is not the expected account's.
    error BadSignature(address expected);
    error DepositOutOfRange(uint256 deposit, uint256 min, uint256 max);
    /// @notice The token moved another amount than was asked: tokens that tax transfers are not supported.
    error WrongAmountReceived(uint256 expected, uint256 received);
    /// @notice This consumer opened an escrow for this leaseRef before.
    error LeaseExists(bytes32 leaseId);
    error LeaseNotFound(bytes32 leaseId);
    error LeaseIsClosed(bytes32 leaseId);
    error LeaseIsOpen(bytes32 leaseId);
    error AlreadyClosing(bytes32 leaseId);
    error NotLastVoucher(bytes32 leaseId);
    error NotProviderReason(CloseReason reason);
    error NotFinalizableBefore(uint256 time);
    error NothingToWithdraw(address token, address account);
    /// @notice There is no such sponsorship, nothing is left of it, or it was credited before.
    error NothingToRefund(bytes32 leaseId, uint256 index);
    /// @notice Money sent there would be lost.
    error BadReceiver(address to);
    error FeeTooHigh(uint256 feeBps, uint256 max);

    /// @notice Opens the escrow of one lease and pulls the deposit from the caller, who must be the quote's consumer.
    /// The deposit pays between `minSeconds` and `maxSeconds`. A second open for the same leaseRef reverts, also after the
    /// close, so that repeating an open whose fate is unknown is safe.
    /// @param signer session key: may sign this lease's vouchers and nothing else.
    function open(Quote calldata quote, bytes calldata signature, address signer, uint128 deposit)
        external
        returns (bytes32 leaseId);

    /// @notice As `open`, with a permit instead of a prior approve. A permit that somebody else already used is no error as
    /// long as the allowance is there.
    function openWithPermit(
        Quote calldata quote,
        bytes calldata signature,
        address signer,
        uint128 deposit,
        Permit calldata permit
    ) external returns (bytes32 leaseId);

    /// @notice As `open`, by anyone, with the consumer's EIP-3009 authorization instead of its transaction: a consumer
    /// without gas can be served by a relayer or by the provider. The deposit must not be zero, as nothing moved would prove
    /// nothing.
    function openWithAuthorization(
        Quote calldata quote,
        bytes calldata signature,
        address signer,
        uint128 deposit,
        Authorization calldata authorization
    ) external returns (bytes32 leaseId);

    /// @notice Adds to the deposit, by anyone, up to what `maxSeconds` cost. Seconds that were counted but not covered are
    /// paid at once. Money of others than the consumer is spent last; `refundSponsor` gives back what is left of it.
    function topUp(bytes32 leaseId, uint128 amount) external;

    /// @notice Pays for the seconds of a voucher. By anyone. A voucher that adds nothing changes nothing. `last` does not
    /// close here. Possible until the lease is closed, also in the claim window.
    function settle(Voucher calldata voucher, bytes calldata signature) external;

    /// @notice Settles many. An item that is refused is left out with `SettleSkipped`; the others count.
    function settleMany(SignedVoucher[] calldata items) external;

    /// @notice Settles a voucher marked `last` and closes at once. By provider or payee.
    function close(Voucher calldata voucher, bytes calldata signature) external;

    /// @notice Pays what the provider asks for, but not less than was settled, and closes at once. By the consumer.
    function closeWithRelease(Release calldata release, bytes calldata signature) external;

    /// @notice Stops the clock. By the consumer. The provider can settle for one more claim window.
    function requestClose(bytes32 leaseId) external;

    /// @notice Closes at once with what is settled. By the provider, who names why.
    function providerClose(bytes32 leaseId, CloseReason reason) external;

    /// @notice Closes with what is settled, a claim window after the clock stopped. By anyone.
    function finalize(bytes32 leaseId) external;

    /// @notice Credits a sponsor with what the closed lease left of its money. By anyone, once for each sponsorship.
    function refundSponsor(bytes32 leaseId, uint256 index) external returns (uint256 amount);

    /// @notice Sends all that the caller has earned or was refunded in one token.
    function withdraw(address token, address to) external returns (uint256 amount);

    /// @notice Makes the caller's quotes with this nonce worthless. Does not touch escrows that are open.
    function cancelQuote(uint256 nonce) external;

    /// @notice Allows or disallows a token for new escrows, and sets the fee they will snapshot. By the owner.
    function setToken(address token, bool allowed, uint16 feeBps) external;

    /// @notice Pauses new escrows, nothing else. By the owner.
    function setOpensPaused(bool paused) external;

    /// @notice The lease, all zero if there is none: `openedAt` is never zero otherwise.
    function lease(bytes32 leaseId) external view returns (Lease memory);

    function leases(bytes32[] calldata leaseIds) external view returns (Lease[] memory);

    function leaseIdOf(address consumer, bytes32 leaseRef) external pure returns (bytes32);

    /// @notice How often `topUp` was called by others than the consumer, calls in a row by the same counted once.
    function sponsorships(bytes32 leaseId) external view returns (uint256);

    /// @notice In the order in which they are spent. All zero if there is none.
    function sponsorship(bytes32 leaseId, uint256 index) external view returns (Sponsorship memory);

    /// @notice The nonce by which an EIP-3009 authorization agrees to open this quote for this session key.
    function authorizationNonce(bytes32 quoteHash, address signer) external pure returns (bytes32);

    /// @notice EIP-712 digests, as they are signed.
    function hashQuote(Quote calldata quote) external view returns (bytes32);
    function hashVoucher(Voucher calldata voucher) external view returns (bytes32);
    function hashRelease(Release calldata release) external view returns (bytes32);

    function credits(address token, address account) external view returns (uint256);

    /// @notice What the account has withdrawn in its life.
    function withdrawn(address token, address account) external view returns (uint256);

    function totals(address token) external view returns (Totals memory);

    function tokenRule(address token) external view returns (TokenRule memory);

    function quoteCancelled(address provider, uint256 nonce) external view returns (bool);

    function networkId() external view returns (bytes32);

    /// @notice Receives the platform fee, less what referrers get.
    function feeRecipient() external view returns (address);

    /// @notice Seconds between the stop of the clock and the earliest `finalize`.
    function claimWindow() external view returns (uint40);

    function opensPaused() external view returns (bool);
}
