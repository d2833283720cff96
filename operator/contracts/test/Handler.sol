// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, Escrow, Token, create, escrowCode, permitOf, receiveAuthorization, signed, vm} from "./Base.sol";
import {ListingUSDC, Wallet1271} from "./Doubles.sol";

/// @dev Everyone does everything, in any order, while time passes: what the invariants are fuzzed with. It keeps books of its
/// own, made in another way than the contract's, and writes down the first time that something is not as they say.
contract Handler is Base {
    uint256 constant MOST_LEASES = 8;
    uint256 constant MOST_DEPOSITS = 8;
    uint256 constant ANOTHER_KEY = 0xA2;
    uint256 constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;

    struct Put {
        address from;
        uint96 amount;
    }

    /// @dev What may only grow, or must not change, as it was when last seen.
    struct Seen {
        uint96 deposit;
        uint96 claimed;
        uint40 closingAt;
        uint96 feeTaken;
        uint32 servedSeconds;
        uint40 openedAt;
        uint40 endsAt;
    }

    /// @dev What we know of a lease without asking.
    struct Known {
        address consumer;
        address provider;
        address token;
        /// The most that was ever shown, after the caps of that moment.
        uint256 counted;
        uint256 feeBps;
        /// The latest second from which anyone can end it. Never later than it was.
        uint256 dueAt;
        /// Hash of the record when it was closed.
        bytes32 ended;
    }

    bytes32[] public ids;
    mapping(bytes32 => Known) public known;
    /// In the order in which it came.
    mapping(bytes32 => Put[]) private puts;
    mapping(bytes32 => mapping(uint256 => bool)) private credited;
    mapping(bytes32 => Seen) private seen;
    mapping(address => uint256) public donated;
    address[] public accounts;
    address[2] public tokens;
    /// By number of the invariant: what was first seen not to hold. Empty as long as all is well.
    mapping(uint256 => string) public broken;
    /// How often each thing was really done: the fuzzing is worth what it reaches.
    mapping(string => uint256) public done;

    Escrow twin;
    Wallet1271 wallet;
    address another;

    constructor() {
        setUp();
        another = vm.addr(ANOTHER_KEY);
        wallet = new Wallet1271();
        twin = Escrow(create(escrowCode(NETWORK, owner, treasury, WINDOW)));
        accounts = [consumer, stranger, another, payee, provider, address(wallet), treasury, referrer];
        tokens = [address(usdc), address(gpu)];
        fund(usdc, stranger, 1e15);
        fund(usdc, another, 1e15);
        for (uint256 i = 1; i < 3; ++i) {
            vm.prank(consumer);
            require(gpu.transfer(accounts[i], 1e26));
            approve(gpu, accounts[i]);
        }
    }

    function makeUsdc() internal override returns (Token) {
        return Token(address(new ListingUSDC()));
    }

    // --------------------------------------------------------------------------------------------------------- opening

    function openSome(uint96 price, uint32 gpus, uint32 max, uint32 covered, uint256 how) external {
        if (ids.length >= MOST_LEASES) return;
        ILeaseEscrow.Quote memory q = someQuote(price, gpus, max, how);
        uint128 deposit = uint128(priceOf(q, covered % (uint256(q.maxSeconds) + 1)));
        uint256 way = (how >> 16) % 3;
        if (way == 2 && (q.token == address(gpu) || q.consumer != consumer || deposit == 0)) way = 0;
        bool mayOpen = !escrow.opensPaused() && escrow.tokenRule(q.token).allowed
            && !(q.token == address(usdc) && isListed(q.consumer));
        uint256 fee = escrow.tokenRule(q.token).feeBps;
        bytes memory data = opening(q, deposit, way);
        vm.prank(way == 2 ? another : q.consumer);
        (bool ok, bytes memory answer) = address(escrow).call(data);
        claim(5, "opened exactly when allowed", ok == mayOpen);
        if (!ok) return;
        bytes32 id = abi.decode(answer, (bytes32));
        ids.push(id);
        puts[id].push(Put(q.consumer, uint96(deposit)));
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        known[id] = Known(q.consumer, q.provider, q.token, 0, fee, l.endsAt + WINDOW, 0);
        seen[id] = seenOf(l);
        ++done[["open", "openWithPermit", "openWithAuthorization"][way]];
    }

    function someQuote(uint96 price, uint32 gpus, uint32 max, uint256 how)
        private
        returns (ILeaseEscrow.Quote memory q)
    {
        q = newQuote();
        q.token = how & 3 == 0 ? address(gpu) : address(usdc);
        q.consumer = how & 12 == 0 ? stranger : consumer;
        q.provider = how & 48 == 0 ? address(wallet) : provider;
        q.payee = how & 64 == 0 ? payee : q.provider;
        q.pricePerGpuHour = uint128(price % (how & 3 == 0 ? 1e19 : 1e7));
        q.gpus = gpus % 16 + 1;
        q.maxSeconds = max % 7200 + 60;
        q.minSeconds = 0;
        if (how & 128 == 0) (q.referrer, q.referrerBps) = (referrer, uint16((how >> 8) % 5001));
    }

    function opening(ILeaseEscrow.Quote memory q, uint128 deposit, uint256 way) private returns (bytes memory) {
        bytes memory signature = byProvider(q.provider, escrow.hashQuote(q));
        if (way == 2) {
            ILeaseEscrow.Authorization memory a = authorization(q, session, deposit);
            return abi.encodeCall(ILeaseEscrow.openWithAuthorization, (q, signature, session, deposit, a));
        }
        if (way == 1) {
            uint256 key = q.consumer == consumer ? CONSUMER_KEY : STRANGER_KEY;
            ILeaseEscrow.Permit memory p = permitOf(key, Token(q.token), address(escrow), type(uint256).max);
            return abi.encodeCall(ILeaseEscrow.openWithPermit, (q, signature, session, deposit, p));
        }
        return abi.encodeCall(ILeaseEscrow.open, (q, signature, session, deposit));
    }

    function byProvider(address who, bytes32 digest) private returns (bytes memory) {
        if (who == provider) return signed(PROVIDER_KEY, digest);
        wallet.accept(digest);
        return "";
    }

    // --------------------------------------------------------------------------------------------------------- serving

    function topUpSome(uint256 which, uint96 amount, uint8 who) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0 || puts[id].length >= MOST_DEPOSITS) return;
        address from = accounts[who % 3];
        uint256 max = uint256(l.maxSeconds) * l.pricePerGpuHour * l.gpus / 3600;
        amount = uint96(amount % (max / 3 + 2));
        bool fits = l.closeReason == ILeaseEscrow.CloseReason.Open && amount != 0 && l.deposit + amount <= max
            && !(l.token == address(usdc) && isListed(from));
        vm.prank(from);
        try escrow.topUp(id, amount) {
            claim(2, "topped up only within the maximum", fits);
            puts[id].push(Put(from, amount));
            ++done[from == l.consumer ? "topUp" : "topUp of a sponsor"];
        } catch {
            claim(5, "a top-up refused that fits", !fits);
        }
        look(id);
    }

    function settleSome(uint256 which, uint32 seconds_, bool last) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, seconds_ % 9000, last);
        bool isOpen = l.closeReason == ILeaseEscrow.CloseReason.Open;
        if (isOpen) count(id, l, v.servedSeconds);
        vm.prank(another);
        try escrow.settle(v, signature) {
            claim(2, "settled only while open", isOpen);
            ++done["settle"];
        } catch {
            exit(false, isOpen);
        }
        look(id);
    }

    function settleThree(uint256 which, uint32 seconds_) external {
        if (ids.length == 0) return;
        ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](3);
        for (uint256 i = 0; i < 3; ++i) {
            bytes32 id = ids[(which % 1000 + i) % ids.length];
            (items[i].voucher, items[i].signature) = voucher(id, uint32((uint256(seconds_) + i * 7) % 9000), i == 1);
            ILeaseEscrow.Lease memory l = escrow.lease(id);
            if (i == 2) items[i].signature[3] ^= 0x01;
            else if (l.closeReason == ILeaseEscrow.CloseReason.Open) count(id, l, items[i].voucher.servedSeconds);
        }
        try escrow.settleMany(items) {
            ++done["settleMany"];
        } catch {
            claim(5, "a batch refused", false);
        }
        for (uint256 i = 0; i < 3; ++i) {
            look(items[i].voucher.leaseId);
        }
    }

    // --------------------------------------------------------------------------------------------------------- closing

    function closeSome(uint256 which, uint32 seconds_) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        (ILeaseEscrow.Voucher memory v, bytes memory signature) = voucher(id, seconds_ % 9000, true);
        uint256 had = starts(id, l, v.servedSeconds);
        vm.prank(which % 2 == 0 ? l.provider : l.payee);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.close, (v, signature)));
        ends(id, l, ok, had, "close");
    }

    function releaseSome(uint256 which, uint32 seconds_) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        ILeaseEscrow.Release memory r = ILeaseEscrow.Release(id, seconds_ % 9000);
        bytes memory signature = byProvider(l.provider, escrow.hashRelease(r));
        uint256 had = starts(id, l, r.servedSeconds);
        vm.prank(l.consumer);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.closeWithRelease, (r, signature)));
        ends(id, l, ok, had, "closeWithRelease");
    }

    function requestSome(uint256 which) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        vm.prank(l.consumer);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.requestClose, (id)));
        exit(ok, l.closeReason == ILeaseEscrow.CloseReason.Open && l.closingAt == 0);
        if (ok) ++done["requestClose"];
        look(id);
    }

    function giveUpSome(uint256 which, uint8 reason) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0 || reason % 4 != 0) return;
        uint256 had = starts(id, l, 0);
        vm.prank(l.provider);
        ILeaseEscrow.CloseReason why = ILeaseEscrow.CloseReason(which % 5 + 5);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.providerClose, (id, why)));
        ends(id, l, ok, had, "providerClose");
    }

    /// @dev I6: once the window is over nothing keeps anyone from finalizing, and nothing lets anyone before.
    function finalizeSome(uint256 which, uint8 who) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        if (vm.getBlockTimestamp() < known[id].dueAt && l.closeReason == ILeaseEscrow.CloseReason.Open) {
            vm.prank(accounts[who % accounts.length]);
            (bool early,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.finalize, (id)));
            claim(6, "finalized before the window was over", !early);
            return;
        }
        uint256 had = starts(id, l, 0);
        vm.prank(accounts[who % accounts.length]);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.finalize, (id)));
        ends(id, l, ok, had, "finalize");
    }

    function refundSome(uint256 which, uint256 index, uint8 who) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        index %= MOST_DEPOSITS;
        (address sponsor, uint256 left) = sponsorOf(id, index, l.claimed);
        if (l.closeReason == ILeaseEscrow.CloseReason.Open || credited[id][index]) left = 0;
        uint256 had = escrow.credits(l.token, sponsor);
        vm.prank(accounts[who % accounts.length]);
        try escrow.refundSponsor(id, index) returns (uint256 amount) {
            claim(13, "another refund than is left", amount == left && escrow.credits(l.token, sponsor) == had + left);
            credited[id][index] = true;
            ++done["refundSponsor"];
        } catch {
            exit(false, left != 0);
        }
    }

    /// @dev I12: a refused receiver is refused alone.
    function withdrawSome(uint256 who, bool native) external {
        address account = accounts[who % accounts.length];
        address token = native ? address(gpu) : address(usdc);
        uint256 amount = escrow.credits(token, account);
        uint256 had = IERC20(token).balanceOf(account);
        bool refused = !native && isListed(account);
        vm.prank(account);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.withdraw, (token, account)));
        claim(12, "a withdrawal refused that nobody's list refuses", ok == (amount != 0 && !refused));
        if (!ok && refused && amount != 0) ++done["withdraw, refused by the token"];
        if (!ok) return;
        claim(1, "withdrawn is what was credited", IERC20(token).balanceOf(account) == had + amount);
        claim(1, "nothing is left of it", escrow.credits(token, account) == 0);
        ++done["withdraw"];
    }

    // --------------------------------------------------------------------------------- what nobody may do, time, and chance

    /// @dev I8: a voucher that the session key did not sign exactly so.
    function forgeVoucher(uint256 which, uint32 seconds_, uint256 how, uint256 bits) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        ILeaseEscrow.Voucher memory v = ILeaseEscrow.Voucher(id, seconds_ % 9000, true);
        bytes memory signature = forged(SESSION_KEY, escrow.hashVoucher(v), how, bits);
        uint256 kind = how % 16;
        if (kind == 8) signature = signed(SESSION_KEY, twin.hashVoucher(v));
        if (kind == 9) signature = signed(SESSION_KEY, escrow.hashRelease(ILeaseEscrow.Release(id, v.servedSeconds)));
        if (kind == 10) signature = signed(SESSION_KEY, elsewhere(v));
        if (kind == 11) v.servedSeconds ^= uint32(bits % type(uint32).max + 1);
        if (kind == 12) v.leaseId = bytes32(uint256(id) ^ 1);
        if (kind == 13) {
            v.leaseId = ids[((which % ids.length) + 1) % ids.length];
            if (v.leaseId == id) return;
        }
        if (kind == 14) {
            signature = signed(SESSION_KEY, escrow.hashVoucher(ILeaseEscrow.Voucher(id, v.servedSeconds, false)));
        }
        if (kind == 15) signature = signed(SESSION_KEY, escrow.hashQuote(quoteOf(bits % 100)));

        bytes32 before = everything(id);
        bytes memory data = abi.encodeCall(ILeaseEscrow.close, (v, signature));
        if (bits % 3 == 0) data = abi.encodeCall(ILeaseEscrow.settle, (v, signature));
        if (bits % 3 == 1) {
            ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](1);
            items[0] = ILeaseEscrow.SignedVoucher(v, signature);
            data = abi.encodeCall(ILeaseEscrow.settleMany, (items));
        }
        vm.prank(l.provider);
        (bool ok,) = address(escrow).call(data);
        claim(8, "a forged voucher is accepted", !ok || bits % 3 == 1);
        claim(8, "a forged voucher changes something", everything(id) == before);
        ++done["forged voucher"];
    }

    /// @dev I8: a release that the provider did not sign exactly so.
    function forgeRelease(uint256 which, uint32 seconds_, uint256 how, uint256 bits) external {
        (bytes32 id, ILeaseEscrow.Lease memory l) = pick(which);
        if (id == 0) return;
        ILeaseEscrow.Release memory r = ILeaseEscrow.Release(id, seconds_ % 9000);
        bytes memory signature = forged(PROVIDER_KEY, escrow.hashRelease(r), how, bits);
        uint256 kind = how % 16;
        if (kind == 8) signature = signed(PROVIDER_KEY, twin.hashRelease(r));
        if (kind == 9) {
            signature = signed(PROVIDER_KEY, escrow.hashVoucher(ILeaseEscrow.Voucher(id, r.servedSeconds, false)));
        }
        if (kind == 10) signature = signed(SESSION_KEY, escrow.hashRelease(r));
        if (kind > 10) r.servedSeconds ^= uint32(bits % type(uint32).max + 1);
        wallet.accept(bytes32(bits));

        bytes32 before = everything(id);
        vm.prank(l.consumer);
        (bool ok,) = address(escrow).call(abi.encodeCall(ILeaseEscrow.closeWithRelease, (r, signature)));
        claim(8, "a forged release is accepted", !ok && everything(id) == before);
        ++done["forged release"];
    }

    /// @dev I8: a quote that the provider, or an authorization that the consumer did not sign exactly so.
    function forgeOpening(uint96 price, uint256 how, uint256 bits) external {
        ILeaseEscrow.Quote memory q = someQuote(price, uint32(bits), uint32(how >> 32), 0xff);
        bytes memory signature = forged(PROVIDER_KEY, escrow.hashQuote(q), how, bits);
        uint256 kind = how % 16;
        ILeaseEscrow.Authorization memory a = authorization(q, session, 1000);
        if (kind == 8) signature = signed(PROVIDER_KEY, twin.hashQuote(q));
        if (kind == 9) q.pricePerGpuHour += 1;
        if (kind == 10) q.payee = stranger;
        if (kind == 11) q.leaseRef ^= bytes32(uint256(1));
        if (kind == 12) (q.referrer, q.referrerBps) = (stranger, q.referrerBps ^ 1);
        // From here on the quote is good, and what the consumer signed is not what is made of it.
        if (kind > 12) signature = signed(PROVIDER_KEY, escrow.hashQuote(q));
        address signer = kind == 13 ? stranger : session;
        uint128 deposit = kind == 14 ? 999 : 1000;
        if (kind == 15) {
            a = receiveAuthorization(
                CONSUMER_KEY, usdc, address(twin), 1000, escrow.authorizationNonce(escrow.hashQuote(q), session)
            );
        }
        bytes32 id = escrow.leaseIdOf(q.consumer, q.leaseRef);
        bytes32 before = everything(id);
        bool authorized = kind > 12 || bits % 2 == 0;
        vm.prank(authorized ? stranger : consumer);
        (bool ok,) = address(escrow)
            .call(
                authorized
                    ? abi.encodeCall(ILeaseEscrow.openWithAuthorization, (q, signature, signer, deposit, a))
                    : abi.encodeCall(ILeaseEscrow.open, (q, signature, signer, deposit))
            );
        claim(8, "a forged opening is accepted", !ok && everything(id) == before);
        ++done["forged opening"];
    }

    /// @dev Ways to spoil that are the same for all messages.
    function forged(uint256 key, bytes32 digest, uint256 how, uint256 bits) private returns (bytes memory) {
        uint256 kind = how % 16;
        uint256 wrong =
            [STRANGER_KEY, CONSUMER_KEY, ANOTHER_KEY, key == SESSION_KEY ? PROVIDER_KEY : SESSION_KEY][bits % 4];
        if (kind == 1) return signed(wrong, digest);
        if (kind == 2) return signed(key, digest ^ bytes32(1 << (bits % 256)));
        if (kind == 3) return "";
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        if (kind == 4) return abi.encodePacked(r, bytes32(ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
        if (kind == 5) return abi.encodePacked(r, bytes32(uint256(s) | (v == 28 ? 1 << 255 : 0)));
        if (kind == 6) return abi.encodePacked(r, s, v, bytes32(bits));
        bytes memory signature = abi.encodePacked(r, s, v);
        if (kind < 8) signature[bits % 65] ^= bytes1(uint8(1 << (bits >> 8) % 8));
        return signature;
    }

    function elsewhere(ILeaseEscrow.Voucher memory v) private returns (bytes32 digest) {
        uint256 here = vm.getChainId();
        vm.chainId(here + 1);
        digest = escrow.hashVoucher(v);
        vm.chainId(here);
    }

    /// @dev All that a lease and the tokens have in the contract.
    function everything(bytes32 id) private view returns (bytes32) {
        return keccak256(
            abi.encode(
                escrow.lease(id),
                escrow.totals(address(usdc)),
                escrow.totals(address(gpu)),
                usdc.balanceOf(address(escrow)),
                gpu.balanceOf(address(escrow))
            )
        );
    }

    function govern(bool paused, bool allowed, uint16 fee) external {
        vm.prank(owner);
        escrow.setOpensPaused(paused && fee % 3 == 0);
        vm.prank(owner);
        escrow.setToken(address(usdc), allowed || fee % 3 != 0, fee % 501);
    }

    function listSome(uint256 who, bool bad) external {
        ListingUSDC(address(usdc)).list(accounts[who % accounts.length], bad);
    }

    function donate(uint32 amount, bool native) external {
        address token = native ? address(gpu) : address(usdc);
        if (!native && isListed(stranger)) return;
        vm.prank(stranger);
        require(IERC20(token).transfer(address(escrow), amount));
        donated[token] += amount;
    }

    function wait(uint32 seconds_) external {
        pass(seconds_ % 2000);
    }

    function waitLong(uint8 dice) external {
        if (dice % 2 == 0) pass(WINDOW);
    }

    // ----------------------------------------------------------------------------------------------------------- books

    function pick(uint256 which) private view returns (bytes32 id, ILeaseEscrow.Lease memory l) {
        if (ids.length == 0) return (0, l);
        id = ids[which % ids.length];
        l = escrow.lease(id);
    }

    function isListed(address account) private view returns (bool) {
        return ListingUSDC(address(usdc)).listed(account);
    }

    function claim(uint256 invariant, string memory what, bool holds) private {
        if (!holds && bytes(broken[invariant]).length == 0) broken[invariant] = what;
    }

    /// @dev I5 and I6: a way out that is open is open whatever is paused.
    function exit(bool ok, bool expected) private {
        bool restricted = escrow.opensPaused() || !escrow.tokenRule(address(usdc)).allowed;
        claim(restricted ? 5 : 6, "a way out is shut, or open too early", ok == expected);
    }

    /// @dev What showing so many seconds now would bring the count to.
    function count(bytes32 id, ILeaseEscrow.Lease memory l, uint256 seconds_) private {
        uint256 until = vm.getBlockTimestamp();
        if (until > l.endsAt) until = l.endsAt;
        if (l.closingAt != 0 && l.closingAt < until) until = l.closingAt;
        if (seconds_ > until - l.openedAt) seconds_ = until - l.openedAt;
        if (seconds_ > l.maxSeconds) seconds_ = l.maxSeconds;
        if (seconds_ > known[id].counted) known[id].counted = seconds_;
    }

    function starts(bytes32 id, ILeaseEscrow.Lease memory l, uint256 seconds_) private returns (uint256 had) {
        if (l.closeReason == ILeaseEscrow.CloseReason.Open) count(id, l, seconds_);
        return escrow.credits(l.token, l.consumer);
    }

    /// @dev I2, I13: the end comes once, and brings the consumer what is left of its own money, at once.
    function ends(bytes32 id, ILeaseEscrow.Lease memory was, bool ok, uint256 had, string memory what) private {
        exit(ok, was.closeReason == ILeaseEscrow.CloseReason.Open);
        look(id);
        if (!ok) return;
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        claim(2, "closed and told so", l.closeReason != ILeaseEscrow.CloseReason.Open);
        uint256 own = 0;
        for (uint256 i = 0; i < puts[id].length; ++i) {
            if (puts[id][i].from == l.consumer) own += puts[id][i].amount;
        }
        uint256 back = own > l.claimed ? own - l.claimed : 0;
        uint256 now_ = escrow.credits(l.token, l.consumer);
        // A consumer that is also paid by the lease is none in here.
        claim(13, "the consumer's refund", now_ == had + back);
        known[id].ended = keccak256(abi.encode(l));
        ++done[what];
    }

    /// @dev The piece of that number, made by walking along all deposits, and what the claim leaves of it.
    function sponsorOf(bytes32 id, uint256 index, uint256 unpaid) private view returns (address sponsor, uint256 left) {
        Put[] storage all = puts[id];
        address consumer_ = known[id].consumer;
        for (uint256 i = 0; i < all.length; ++i) {
            if (all[i].from == consumer_) unpaid -= unpaid < all[i].amount ? unpaid : all[i].amount;
        }
        uint256 piece = 0;
        address last;
        for (uint256 i = 0; i < all.length; ++i) {
            if (all[i].from == consumer_) continue;
            if (last != address(0) && last != all[i].from) ++piece;
            last = all[i].from;
            uint256 spent = unpaid < all[i].amount ? unpaid : all[i].amount;
            unpaid -= spent;
            if (piece == index) (sponsor, left) = (last, left + all[i].amount - spent);
        }
    }

    /// @dev I4: nothing that was paid is taken back. I6: no end moves away.
    function look(bytes32 id) private {
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        Seen memory was = seen[id];
        claim(
            4,
            "less than there was",
            l.servedSeconds >= was.servedSeconds && l.claimed >= was.claimed && l.feeTaken >= was.feeTaken
        );
        claim(4, "less deposit than there was", l.deposit >= was.deposit);
        claim(6, "the end moved", l.endsAt == was.endsAt && l.openedAt == was.openedAt);
        claim(6, "closing was taken back", was.closingAt == 0 || l.closingAt == was.closingAt);
        uint256 stop = l.closingAt != 0 && l.closingAt < l.endsAt ? l.closingAt : l.endsAt;
        claim(6, "the end is later than it was", stop + WINDOW <= known[id].dueAt);
        if (known[id].dueAt != stop + WINDOW) known[id].dueAt = stop + WINDOW;
        seen[id] = seenOf(l);
    }

    function seenOf(ILeaseEscrow.Lease memory l) private pure returns (Seen memory) {
        return Seen(l.deposit, l.claimed, l.closingAt, l.feeTaken, l.servedSeconds, l.openedAt, l.endsAt);
    }

    // ------------------------------------------------------------------------------------------ what the invariants look at

    function count() external view returns (uint256) {
        return ids.length;
    }

    function leaseOf(uint256 i) external view returns (ILeaseEscrow.Lease memory, Known memory) {
        return (escrow.lease(ids[i]), known[ids[i]]);
    }

    function totalsOf(address token) external view returns (ILeaseEscrow.Totals memory) {
        return escrow.totals(token);
    }

    function balanceOf(address token) external view returns (uint256) {
        return IERC20(token).balanceOf(address(escrow));
    }

    function creditsOf(address token) external view returns (uint256 sum) {
        for (uint256 i = 0; i < accounts.length; ++i) {
            sum += escrow.credits(token, accounts[i]);
        }
    }

    /// @dev All deposits of a lease.
    function depositsOf(uint256 i) public view returns (uint256 all) {
        Put[] storage list = puts[ids[i]];
        for (uint256 p = 0; p < list.length; ++p) {
            all += list[p].amount;
        }
    }

    /// @dev What is still owed to the sponsors of a lease: our sum, and the contract's.
    function owedOf(uint256 i) external view returns (uint256 owed, uint256 told) {
        ILeaseEscrow.Lease memory l = escrow.lease(ids[i]);
        owed = ourOwed(ids[i], l);
        uint256 pieces = escrow.sponsorships(ids[i]);
        for (uint256 p = 0; p < pieces; ++p) {
            told += escrow.sponsorship(ids[i], p).refundable;
        }
    }

    function ourOwed(bytes32 id, ILeaseEscrow.Lease memory l) private view returns (uint256 owed) {
        if (l.closeReason == ILeaseEscrow.CloseReason.Open) return 0;
        for (uint256 p = 0; p < puts[id].length; ++p) {
            if (credited[id][p]) continue;
            (address sponsor, uint256 left) = sponsorOf(id, p, l.claimed);
            if (sponsor == address(0)) break;
            owed += left;
        }
    }

    /// @dev Of all leases in a token: what was put in, and what is still inside.
    function moneyOf(address token) external view returns (uint256 deposits, uint256 inside) {
        for (uint256 i = 0; i < ids.length; ++i) {
            if (known[ids[i]].token != token) continue;
            ILeaseEscrow.Lease memory l = escrow.lease(ids[i]);
            deposits += depositsOf(i);
            inside += l.closeReason == ILeaseEscrow.CloseReason.Open ? l.deposit - l.claimed : ourOwed(ids[i], l);
        }
    }

    /// @dev I5, I6, and all the rest: from wherever we came to, and with everything paused that can be, everybody leaves with
    /// what is theirs and nothing stays behind.
    function everybodyLeaves() external {
        vm.prank(owner);
        escrow.setOpensPaused(true);
        vm.prank(owner);
        escrow.setToken(address(usdc), false, 500);
        vm.prank(owner);
        escrow.setToken(address(gpu), false, 500);
        for (uint256 i = 0; i < accounts.length; ++i) {
            ListingUSDC(address(usdc)).list(accounts[i], false);
        }
        pass(WINDOW + 7200 + 60 + 300);
        for (uint256 i = 0; i < ids.length; ++i) {
            bytes32 id = ids[i];
            if (escrow.lease(id).closeReason == ILeaseEscrow.CloseReason.Open) escrow.finalize(id);
            for (uint256 p = 0; p < escrow.sponsorships(id); ++p) {
                if (escrow.sponsorship(id, p).refundable != 0) escrow.refundSponsor(id, p);
            }
        }
        for (uint256 t = 0; t < 2; ++t) {
            for (uint256 i = 0; i < accounts.length; ++i) {
                if (escrow.credits(tokens[t], accounts[i]) == 0) continue;
                vm.prank(accounts[i]);
                escrow.withdraw(tokens[t], accounts[i]);
            }
            claim(1, "something stayed behind", IERC20(tokens[t]).balanceOf(address(escrow)) == donated[tokens[t]]);
            claim(1, "something is still held", escrow.totals(tokens[t]).held == 0);
        }
    }
}
