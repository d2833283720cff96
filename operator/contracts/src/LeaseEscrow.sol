// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {IERC3009} from "@openzeppelin/contracts/interfaces/draft-IERC3009.sol";
import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

import {ILeaseEscrow} from "./ILeaseEscrow.sol";

/// @title What each function promises stands in ILeaseEscrow; here is how it is kept.
contract LeaseEscrow is ILeaseEscrow, EIP712, Ownable2Step, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @dev What is kept of a lease. Terms are written once, at open; a settlement writes `State` alone, which fits in one
    /// slot. Amounts of 96 bits hold 79 billion tokens of 18 decimals.
    struct Stored {
        address consumer;
        uint96 deposit;
        // slot 1
        address signer;
        uint96 pricePerGpuHour;
        // slot 2
        address provider;
        uint32 gpus;
        uint32 maxSeconds;
        uint16 feeBps;
        uint16 referrerBps;
        // slot 3
        State state;
        // slot 4: read by a close anyway, so that sponsors cost nothing where there are none
        address token;
        uint96 sponsored;
        // slot 5
        address payee;
        // slot 6: never touched when there is no referrer
        address referrer;
        // slot 7
        bytes32 quoteHash;
    }

    struct State {
        uint96 claimed;
        uint32 servedSeconds;
        uint40 openedAt;
        uint40 endsAt;
        uint40 closingAt;
        CloseReason closeReason;
    }

    /// @dev Others' money lies behind one another on a line of `Stored.sponsored` base units, each from its start to the next
    /// one's, and is spent along the line. Whoever pays twice in a row extends its piece. There is no limit to their number
    /// because nothing ever walks along them: a limit could be used up by a stranger, with dust.
    struct Piece {
        address sponsor;
        uint96 start;
    }

    /// @dev Never returns to zero once used, so that the next credit costs 5,000 gas and not 22,100.
    struct Account {
        uint128 credit;
        uint128 withdrawn;
    }

    /// @dev Two slots: `open` writes the first, `settle` the second, a close both. Withdrawals are counted apart.
    struct StoredTotals {
        uint128 deposited;
        uint128 refunded;
        uint128 paid;
        uint128 fee;
    }

    uint16 public constant MAX_FEE_BPS = 500;
    uint16 public constant MAX_REFERRER_BPS = 5000;
    uint256 private constant BPS = 10_000;

    bytes32 private constant QUOTE_TYPEHASH = keccak256(
        "Quote(bytes32 networkId,address provider,address payee,address consumer,bytes32 leaseRef,address token,"
        "uint128 pricePerGpuHour,uint32 gpus,uint32 minSeconds,uint32 maxSeconds,uint32 startTimeoutSeconds,"
        "uint32 graceSeconds,uint8 capacityType,bytes32 specHash,bytes32 saltCommit,address referrer,uint16 referrerBps,"
        "uint64 expiresAt,uint256 nonce)"
    );
    bytes32 private constant VOUCHER_TYPEHASH = keccak256("Voucher(bytes32 leaseId,uint32 servedSeconds,bool last)");
    bytes32 private constant RELEASE_TYPEHASH = keccak256("Release(bytes32 leaseId,uint32 servedSeconds)");

    /// @inheritdoc ILeaseEscrow
    bytes32 public immutable networkId;
    /// @inheritdoc ILeaseEscrow
    address public immutable feeRecipient;
    /// @inheritdoc ILeaseEscrow
    uint40 public immutable claimWindow;

    /// @inheritdoc ILeaseEscrow
    bool public opensPaused;

    mapping(bytes32 leaseId => Stored) private _leases;
    mapping(bytes32 leaseId => Piece[]) private _pieces;
    mapping(address token => TokenRule) private _tokenRules;
    mapping(address token => mapping(address account => Account)) private _accounts;
    mapping(address token => StoredTotals) private _totals;
    mapping(address token => uint256) private _withdrawn;
    mapping(address provider => mapping(uint256 word => uint256)) private _cancelled;

    constructor(bytes32 networkId_, address owner_, address feeRecipient_, uint40 claimWindow_)
        EIP712("gpulease", "1")
        Ownable(owner_)
    {
        // A window so long that its end cannot be told would lock money; an empty one would leave no time to settle.
        if (feeRecipient_ == address(0) || claimWindow_ == 0 || claimWindow_ > 30 days) revert InvalidTerms();
        networkId = networkId_;
        feeRecipient = feeRecipient_;
        claimWindow = claimWindow_;
    }

    // ---------------------------------------------------------------------------------------------------- open, top up

    /// @inheritdoc ILeaseEscrow
    function open(Quote calldata quote, bytes calldata signature, address signer, uint128 deposit)
        external
        nonReentrant
        returns (bytes32 leaseId)
    {
        if (msg.sender != quote.consumer) revert NotAuthorized(msg.sender);
        (leaseId,) = _open(quote, signature, signer, deposit);
        _pull(quote.token, deposit);
    }

    /// @inheritdoc ILeaseEscrow
    function openWithPermit(
        Quote calldata quote,
        bytes calldata signature,
        address signer,
        uint128 deposit,
        Permit calldata permit
    ) external nonReentrant returns (bytes32 leaseId) {
        if (msg.sender != quote.consumer) revert NotAuthorized(msg.sender);
        (leaseId,) = _open(quote, signature, signer, deposit);
        // Anyone may have played the permit before us; what counts is the allowance, which the transfer checks. By now the
        // token is known to be an allowed one, so that no call leaves for any other address.
        try IERC20Permit(quote.token).permit(
            msg.sender, address(this), permit.value, permit.deadline, permit.v, permit.r, permit.s
        ) {} catch {}
        _pull(quote.token, deposit);
    }

    /// @inheritdoc ILeaseEscrow
    function openWithAuthorization(
        Quote calldata quote,
        bytes calldata signature,
        address signer,
        uint128 deposit,
        Authorization calldata authorization
    ) external nonReentrant returns (bytes32 leaseId) {
        // A token that knows no authorizations but answers whatever it is asked would let anyone open a lease of no money.
        if (deposit == 0) revert DepositOutOfRange(0, 1, type(uint96).max);
        bytes32 quoteHash;
        (leaseId, quoteHash) = _open(quote, signature, signer, deposit);
        uint256 before = _startPull(quote.token, deposit);
        // The token lets only the receiver play it, so nobody can take the money out of this call.
        IERC3009(quote.token).receiveWithAuthorization(
            quote.consumer,
            address(this),
            deposit,
            authorization.validAfter,
            authorization.validBefore,
            _authorizationNonce(quoteHash, signer),
            authorization.v,
            authorization.r,
            authorization.s
        );
        _endPull(quote.token, deposit, before);
    }

    /// @dev Everything but who may, and the money.
    function _open(Quote calldata quote, bytes calldata signature, address signer, uint128 deposit)
        private
        returns (bytes32 leaseId, bytes32 quoteHash)
    {
        if (opensPaused) revert OpensArePaused();
        if (quote.networkId != networkId) revert WrongNetwork(quote.networkId);
        if (block.timestamp >= quote.expiresAt) revert QuoteExpired(quote.expiresAt);
        if (
            signer == address(0) || quote.payee == address(0) || quote.gpus == 0 || quote.maxSeconds == 0
                || quote.minSeconds > quote.maxSeconds || quote.pricePerGpuHour > type(uint96).max
                || quote.referrerBps > MAX_REFERRER_BPS || deposit > type(uint96).max
        ) revert InvalidTerms();

        leaseId = _leaseIdOf(quote.consumer, quote.leaseRef);
        Stored storage l = _leases[leaseId];
        if (l.state.openedAt != 0) revert LeaseExists(leaseId);

        uint16 feeBps;
        {
            TokenRule memory rule = _tokenRules[quote.token];
            if (!rule.allowed) revert TokenNotAllowed(quote.token);
            feeBps = rule.feeBps;
            uint256 min = _priceOf(quote.minSeconds, quote.gpus, quote.pricePerGpuHour);
            uint256 max = _priceOf(quote.maxSeconds, quote.gpus, quote.pricePerGpuHour);
            if (deposit < min || deposit > max) revert DepositOutOfRange(deposit, min, max);
        }

        quoteHash = _hashQuote(quote);
        if (!_isSignedBy(quote.provider, quoteHash, signature)) revert BadSignature(quote.provider);
        if (_isCancelled(quote.provider, quote.nonce)) revert QuoteIsCancelled(quote.provider, quote.nonce);

        uint256 endsAt = block.timestamp + quote.startTimeoutSeconds + quote.maxSeconds;
        l.consumer = quote.consumer;
        l.deposit = uint96(deposit);
        l.signer = signer;
        l.pricePerGpuHour = uint96(quote.pricePerGpuHour);
        l.provider = quote.provider;
        l.gpus = quote.gpus;
        l.maxSeconds = quote.maxSeconds;
        l.feeBps = feeBps;
        // Without a referrer nothing is shared, and the slot of its address is never written nor read.
        if (quote.referrer != address(0) && quote.referrerBps != 0) {
            l.referrerBps = quote.referrerBps;
            l.referrer = quote.referrer;
        }
        l.state = State({
            claimed: 0,
            servedSeconds: 0,
            openedAt: uint40(block.timestamp),
            endsAt: uint40(endsAt),
            closingAt: 0,
            closeReason: CloseReason.Open
        });
        l.token = quote.token;
        l.payee = quote.payee;
        l.quoteHash = quoteHash;

        emit LeaseOpened(
            leaseId,
            quote.consumer,
            quote.provider,
            quote.token,
            deposit,
            quote.pricePerGpuHour,
            quote.gpus,
            endsAt,
            quote.specHash,
            quoteHash
        );
    }

    /// @inheritdoc ILeaseEscrow
    function topUp(bytes32 leaseId, uint128 amount) external nonReentrant {
        Stored storage l = _leases[leaseId];
        State memory s = _openState(leaseId, l);
        uint256 max = _priceOf(l.maxSeconds, l.gpus, l.pricePerGpuHour);
        uint256 deposit = uint256(l.deposit) + amount;
        if (amount == 0 || deposit > max || deposit > type(uint96).max) revert DepositOutOfRange(deposit, 0, max);
        l.deposit = uint96(deposit);
        if (msg.sender != l.consumer) {
            Piece[] storage pieces = _pieces[leaseId];
            uint256 count = pieces.length;
            if (count == 0 || pieces[count - 1].sponsor != msg.sender) pieces.push(Piece(msg.sender, l.sponsored));
            l.sponsored += uint96(amount);
        }
        _pull(l.token, amount);
        emit LeaseToppedUp(leaseId, msg.sender, amount, deposit);
        _count(leaseId, l, s, s.servedSeconds);
    }

    /// @dev Takes tokens from the caller, and counts them.
    function _pull(address token, uint256 amount) private {
        uint256 before = _startPull(token, amount);
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        _endPull(token, amount, before);
    }

    function _startPull(address token, uint256 amount) private returns (uint256 before) {
        _totals[token].deposited += uint128(amount);
        return IERC20(token).balanceOf(address(this));
    }

    function _endPull(address token, uint256 amount, uint256 before) private view {
        uint256 received = IERC20(token).balanceOf(address(this)) - before;
        if (received != amount) revert WrongAmountReceived(amount, received);
    }

    // ---------------------------------------------------------------------------------------------------------- settle

    /// @inheritdoc ILeaseEscrow
    function settle(Voucher calldata voucher, bytes calldata signature) external nonReentrant {
        Stored storage l = _leases[voucher.leaseId];
        State memory s = _openState(voucher.leaseId, l);
        if (!_isSignedByKey(l.signer, _hashVoucher(voucher), signature)) revert BadSignature(l.signer);
        _count(voucher.leaseId, l, s, voucher.servedSeconds);
    }

    /// @inheritdoc ILeaseEscrow
    function settleMany(SignedVoucher[] calldata items) external nonReentrant {
        for (uint256 i = 0; i < items.length; ++i) {
            Voucher calldata voucher = items[i].voucher;
            Stored storage l = _leases[voucher.leaseId];
            State memory s = l.state;
            Skipped skipped = s.openedAt == 0
                ? Skipped.LeaseNotFound
                : s.closeReason != CloseReason.Open
                    ? Skipped.LeaseClosed
                    : !_isSignedByKey(l.signer, _hashVoucher(voucher), items[i].signature) ? Skipped.BadSignature : Skipped.None;
            if (skipped != Skipped.None) emit SettleSkipped(voucher.leaseId, skipped);
            else _count(voucher.leaseId, l, s, voucher.servedSeconds);
        }
    }

    /// @dev Counts seconds and credits what they add. Writes `State`, changes the copy in memory too. Seconds below those
    /// that were counted before count as those.
    function _count(bytes32 leaseId, Stored storage l, State memory s, uint256 seconds_) private {
        seconds_ = _min(seconds_, _min(l.maxSeconds, _elapsed(s)));
        if (seconds_ < s.servedSeconds) seconds_ = s.servedSeconds;
        uint256 due = _min(_priceOf(seconds_, l.gpus, l.pricePerGpuHour), l.deposit);
        if (seconds_ == s.servedSeconds && due == s.claimed) return;

        (uint256 paid, uint256 fee) = _credit(l, s.claimed, due);
        s.servedSeconds = uint32(seconds_);
        s.claimed = uint96(due);
        l.state = s;
        emit LeaseSettled(leaseId, seconds_, paid, fee);
    }

    /// @dev Shares out what lies between two sums. Fees are taken from the sums and not from the difference, so that
    /// rounding happens once, however often a lease is settled.
    function _credit(Stored storage l, uint256 before, uint256 claimed) private returns (uint256 paid, uint256 fee) {
        if (claimed == before) return (0, 0);
        address token = l.token;
        uint256 feeBefore = _feeOf(before, l.feeBps);
        uint256 feeNow = _feeOf(claimed, l.feeBps);
        fee = feeNow - feeBefore;
        paid = claimed - before - fee;
        if (fee != 0) {
            uint256 referred = 0;
            if (l.referrerBps != 0) {
                referred = feeNow * l.referrerBps / BPS - feeBefore * l.referrerBps / BPS;
                if (referred != 0) _accounts[token][l.referrer].credit += uint128(referred);
            }
            if (fee != referred) _accounts[token][feeRecipient].credit += uint128(fee - referred);
        }
        if (paid != 0) _accounts[token][l.payee].credit += uint128(paid);
        StoredTotals storage t = _totals[token];
        (t.paid, t.fee) = (t.paid + uint128(paid), t.fee + uint128(fee));
    }

    // ----------------------------------------------------------------------------------------------------------- close

    /// @inheritdoc ILeaseEscrow
    function close(Voucher calldata voucher, bytes calldata signature) external nonReentrant {
        Stored storage l = _leases[voucher.leaseId];
        State memory s = _openState(voucher.leaseId, l);
        if (msg.sender != l.provider && msg.sender != l.payee) revert NotAuthorized(msg.sender);
        if (!voucher.last) revert NotLastVoucher(voucher.leaseId);
        if (!_isSignedByKey(l.signer, _hashVoucher(voucher), signature)) revert BadSignature(l.signer);
        _close(voucher.leaseId, l, s, voucher.servedSeconds, CloseReason.LastVoucher);
    }

    /// @inheritdoc ILeaseEscrow
    function closeWithRelease(Release calldata release, bytes calldata signature) external nonReentrant {
        Stored storage l = _leases[release.leaseId];
        State memory s = _openState(release.leaseId, l);
        if (msg.sender != l.consumer) revert NotAuthorized(msg.sender);
        if (!_isSignedBy(l.provider, _hashRelease(release), signature)) revert BadSignature(l.provider);
        _close(release.leaseId, l, s, release.servedSeconds, CloseReason.Released);
    }

    /// @inheritdoc ILeaseEscrow
    function requestClose(bytes32 leaseId) external nonReentrant {
        Stored storage l = _leases[leaseId];
        State memory s = _openState(leaseId, l);
        if (msg.sender != l.consumer) revert NotAuthorized(msg.sender);
        if (s.closingAt != 0) revert AlreadyClosing(leaseId);
        uint256 closingAt = _min(block.timestamp, s.endsAt);
        l.state.closingAt = uint40(closingAt);
        emit LeaseCloseRequested(leaseId, msg.sender, closingAt);
    }

    /// @inheritdoc ILeaseEscrow
    function providerClose(bytes32 leaseId, CloseReason reason) external nonReentrant {
        Stored storage l = _leases[leaseId];
        State memory s = _openState(leaseId, l);
        if (msg.sender != l.provider) revert NotAuthorized(msg.sender);
        if (reason < CloseReason.ProviderUnpaid) revert NotProviderReason(reason);
        _close(leaseId, l, s, s.servedSeconds, reason);
    }

    /// @inheritdoc ILeaseEscrow
    function finalize(bytes32 leaseId) external nonReentrant {
        Stored storage l = _leases[leaseId];
        State memory s = _openState(leaseId, l);
        bool asked = s.closingAt != 0 && s.closingAt < s.endsAt;
        uint256 from = uint256(asked ? s.closingAt : s.endsAt) + claimWindow;
        if (block.timestamp < from) revert NotFinalizableBefore(from);
        _close(leaseId, l, s, s.servedSeconds, asked ? CloseReason.ConsumerRequested : CloseReason.Expired);
    }

    /// @dev Counts, credits payee, fee and consumer, and ends the lease, writing `State` once.
    function _close(bytes32 leaseId, Stored storage l, State memory s, uint256 seconds_, CloseReason reason) private {
        seconds_ = _min(seconds_, _min(l.maxSeconds, _elapsed(s)));
        if (seconds_ < s.servedSeconds) seconds_ = s.servedSeconds;
        uint256 deposit = l.deposit;
        uint256 claimed = _min(_priceOf(seconds_, l.gpus, l.pricePerGpuHour), deposit);
        _credit(l, s.claimed, claimed);

        uint256 refund = deposit - claimed;
        if (refund != 0) {
            // Sponsors' money is spent last, so it is refunded first, each to its own. What they get stays held until then.
            uint256 own = refund - _min(refund, l.sponsored);
            if (own != 0) _refund(l.token, l.consumer, own);
        }
        s.servedSeconds = uint32(seconds_);
        s.claimed = uint96(claimed);
        if (s.closingAt == 0) s.closingAt = uint40(_min(block.timestamp, s.endsAt));
        s.closeReason = reason;
        l.state = s;

        uint256 fee = _feeOf(claimed, l.feeBps);
        emit LeaseClosed(leaseId, msg.sender, reason, seconds_, claimed - fee, fee, refund);
    }

    function _refund(address token, address to, uint256 amount) private {
        _accounts[token][to].credit += uint128(amount);
        _totals[token].refunded += uint128(amount);
    }

    /// @inheritdoc ILeaseEscrow
    function refundSponsor(bytes32 leaseId, uint256 index) external nonReentrant returns (uint256 amount) {
        Stored storage l = _leases[leaseId];
        State memory s = l.state;
        if (s.openedAt == 0) revert LeaseNotFound(leaseId);
        if (s.closeReason == CloseReason.Open) revert LeaseIsOpen(leaseId);
        Sponsorship memory found = _sponsorship(leaseId, index, l, s);
        amount = found.refundable;
        if (amount == 0) revert NothingToRefund(leaseId, index);
        _pieces[leaseId][index].sponsor = address(0);
        _refund(l.token, found.sponsor, amount);
        emit SponsorRefunded(leaseId, found.sponsor, amount);
    }

    /// @dev What was spent of the line is its beginning, so of a piece is left what lies beyond that.
    function _sponsorship(bytes32 leaseId, uint256 index, Stored storage l, State memory s)
        private
        view
        returns (Sponsorship memory found)
    {
        Piece[] storage pieces = _pieces[leaseId];
        if (index >= pieces.length) return found;
        Piece memory piece = pieces[index];
        uint256 end = index + 1 < pieces.length ? pieces[index + 1].start : l.sponsored;
        found.sponsor = piece.sponsor;
        found.amount = uint96(end - piece.start);
        if (s.closeReason == CloseReason.Open || piece.sponsor == address(0)) return found;
        uint256 spent = l.sponsored - _min(l.deposit - s.claimed, l.sponsored);
        if (spent < end) found.refundable = uint96(end - (spent > piece.start ? spent : piece.start));
    }

    // ---------------------------------------------------------------------------------------- withdraw, cancel, govern

    /// @inheritdoc ILeaseEscrow
    function withdraw(address token, address to) external nonReentrant returns (uint256 amount) {
        if (to == address(0) || to == address(this)) revert BadReceiver(to);
        Account storage a = _accounts[token][msg.sender];
        amount = a.credit;
        if (amount == 0) revert NothingToWithdraw(token, msg.sender);
        (a.credit, a.withdrawn) = (0, a.withdrawn + uint128(amount));
        _withdrawn[token] += amount;
        emit Withdrawn(token, msg.sender, to, amount);
        IERC20(token).safeTransfer(to, amount);
    }

    /// @inheritdoc ILeaseEscrow
    function cancelQuote(uint256 nonce) external {
        _cancelled[msg.sender][nonce >> 8] |= 1 << (nonce & 0xff);
        emit QuoteCancelled(msg.sender, nonce);
    }

    /// @inheritdoc ILeaseEscrow
    function setToken(address token, bool allowed, uint16 feeBps) external onlyOwner {
        if (feeBps > MAX_FEE_BPS) revert FeeTooHigh(feeBps, MAX_FEE_BPS);
        _tokenRules[token] = TokenRule({allowed: allowed, feeBps: feeBps});
        emit TokenRuleChanged(token, allowed, feeBps);
    }

    /// @inheritdoc ILeaseEscrow
    function setOpensPaused(bool paused) external onlyOwner {
        opensPaused = paused;
        emit OpensPaused(paused);
    }

    // ----------------------------------------------------------------------------------------------------------- views

    /// @inheritdoc ILeaseEscrow
    function lease(bytes32 leaseId) external view returns (Lease memory) {
        return _view(leaseId);
    }

    /// @inheritdoc ILeaseEscrow
    function leases(bytes32[] calldata leaseIds) external view returns (Lease[] memory all) {
        all = new Lease[](leaseIds.length);
        for (uint256 i = 0; i < leaseIds.length; ++i) {
            all[i] = _view(leaseIds[i]);
        }
    }

    function _view(bytes32 leaseId) private view returns (Lease memory v) {
        Stored storage l = _leases[leaseId];
        State memory s = l.state;
        v.consumer = l.consumer;
        v.signer = l.signer;
        v.provider = l.provider;
        v.payee = l.payee;
        v.token = l.token;
        v.referrer = l.referrer;
        v.referrerBps = l.referrerBps;
        v.feeBps = l.feeBps;
        v.gpus = l.gpus;
        v.maxSeconds = l.maxSeconds;
        v.pricePerGpuHour = l.pricePerGpuHour;
        v.deposit = l.deposit;
        v.servedSeconds = s.servedSeconds;
        v.claimed = s.claimed;
        v.feeTaken = uint96(_feeOf(s.claimed, l.feeBps));
        v.refunded = s.closeReason == CloseReason.Open ? 0 : l.deposit - s.claimed;
        v.openedAt = s.openedAt;
        v.endsAt = s.endsAt;
        v.closingAt = s.closingAt;
        v.closeReason = s.closeReason;
        v.quoteHash = l.quoteHash;
    }

    /// @inheritdoc ILeaseEscrow
    function leaseIdOf(address consumer, bytes32 leaseRef) external pure returns (bytes32) {
        return _leaseIdOf(consumer, leaseRef);
    }

    /// @inheritdoc ILeaseEscrow
    function sponsorships(bytes32 leaseId) external view returns (uint256) {
        return _pieces[leaseId].length;
    }

    /// @inheritdoc ILeaseEscrow
    function sponsorship(bytes32 leaseId, uint256 index) external view returns (Sponsorship memory) {
        Stored storage l = _leases[leaseId];
        return _sponsorship(leaseId, index, l, l.state);
    }

    /// @inheritdoc ILeaseEscrow
    function authorizationNonce(bytes32 quoteHash, address signer) external pure returns (bytes32) {
        return _authorizationNonce(quoteHash, signer);
    }

    /// @inheritdoc ILeaseEscrow
    function hashQuote(Quote calldata quote) external view returns (bytes32) {
        return _hashQuote(quote);
    }

    /// @inheritdoc ILeaseEscrow
    function hashVoucher(Voucher calldata voucher) external view returns (bytes32) {
        return _hashVoucher(voucher);
    }

    /// @inheritdoc ILeaseEscrow
    function hashRelease(Release calldata release) external view returns (bytes32) {
        return _hashRelease(release);
    }

    /// @inheritdoc ILeaseEscrow
    function credits(address token, address account) external view returns (uint256) {
        return _accounts[token][account].credit;
    }

    /// @inheritdoc ILeaseEscrow
    function withdrawn(address token, address account) external view returns (uint256) {
        return _accounts[token][account].withdrawn;
    }

    /// @inheritdoc ILeaseEscrow
    function totals(address token) external view returns (Totals memory) {
        StoredTotals memory t = _totals[token];
        return Totals({
            deposited: t.deposited,
            paid: t.paid,
            fee: t.fee,
            refunded: t.refunded,
            held: uint256(t.deposited) - t.paid - t.fee - t.refunded,
            withdrawn: _withdrawn[token]
        });
    }

    /// @inheritdoc ILeaseEscrow
    function tokenRule(address token) external view returns (TokenRule memory) {
        return _tokenRules[token];
    }

    /// @inheritdoc ILeaseEscrow
    function quoteCancelled(address provider, uint256 nonce) external view returns (bool) {
        return _isCancelled(provider, nonce);
    }

    // --------------------------------------------------------------------------------------------------------- helpers

    function _openState(bytes32 leaseId, Stored storage l) private view returns (State memory s) {
        s = l.state;
        if (s.openedAt == 0) revert LeaseNotFound(leaseId);
        if (s.closeReason != CloseReason.Open) revert LeaseIsClosed(leaseId);
    }

    function _isSignedByKey(address signer, bytes32 digest, bytes calldata signature) private pure returns (bool) {
        (address recovered, ECDSA.RecoverError err,) = ECDSA.tryRecoverCalldata(digest, signature);
        return err == ECDSA.RecoverError.NoError && recovered == signer;
    }

    /// @dev By the account's key, or else by its contract (ERC-1271). The key comes first: an account to which EIP-7702 gave
    /// code has one as before, and off chain nobody could tell that its signature does not count.
    function _isSignedBy(address account, bytes32 digest, bytes calldata signature) private view returns (bool) {
        return _isSignedByKey(account, digest, signature)
            || SignatureChecker.isValidSignatureNowCalldata(account, digest, signature);
    }

    function _isCancelled(address provider, uint256 nonce) private view returns (bool) {
        return _cancelled[provider][nonce >> 8] & (1 << (nonce & 0xff)) != 0;
    }

    function _elapsed(State memory s) private view returns (uint256) {
        // `closingAt` is at most the end. The end itself needs no look: it is no sooner than `maxSeconds`, which caps as well.
        return (s.closingAt != 0 ? s.closingAt : block.timestamp) - s.openedAt;
    }

    function _leaseIdOf(address consumer, bytes32 leaseRef) private pure returns (bytes32) {
        return keccak256(abi.encode(consumer, leaseRef));
    }

    /// @dev The digest of the quote is this contract's and this chain's already.
    function _authorizationNonce(bytes32 quoteHash, address signer) private pure returns (bytes32) {
        return keccak256(abi.encode(quoteHash, signer));
    }

    /// @dev All members of Quote are value types, so its ABI encoding is what EIP-712 hashes.
    function _hashQuote(Quote calldata quote) private view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(QUOTE_TYPEHASH, quote)));
    }

    function _hashVoucher(Voucher calldata voucher) private view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, voucher)));
    }

    function _hashRelease(Release calldata release) private view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(RELEASE_TYPEHASH, release)));
    }

    /// @dev Cannot overflow: 32 + 96 + 32 bits.
    function _priceOf(uint256 seconds_, uint256 gpus, uint256 pricePerGpuHour) private pure returns (uint256) {
        return seconds_ * pricePerGpuHour * gpus / 1 hours;
    }

    function _feeOf(uint256 claimed, uint256 feeBps) private pure returns (uint256) {
        return claimed * feeBps / BPS;
    }

    function _min(uint256 a, uint256 b) private pure returns (uint256) {
        return a < b ? a : b;
    }
}
