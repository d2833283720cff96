// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {
    Base,
    Escrow,
    Token,
    create,
    escrowCode,
    permitOf,
    receiveAuthorization,
    same,
    signed,
    vm,
    yes
} from "./Base.sol";
import {AnsweringToken, FalseToken, TaxedToken, Wallet1271} from "./Doubles.sol";

/// @dev trees/open.tree, openWithPermit.tree, openWithAuthorization.tree, cancelQuote.tree
contract OpenTest is Base {
    function refused(ILeaseEscrow.Quote memory q, bytes memory why) private {
        bytes memory signature = signedQuote(q);
        uint128 deposit = uint128(priceOf(q, q.maxSeconds));
        vm.prank(consumer);
        expect(why);
        escrow.open(q, signature, session, deposit);
    }

    function test_open_keepsTermsAndPullsDeposit() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 2500);
        q.specHash = keccak256("spec");
        uint256 had = usdc.balanceOf(consumer);
        bytes32 quoteHash = escrow.hashQuote(q);
        bytes32 expected = keccak256(abi.encode(consumer, q.leaseRef));
        bytes memory signature = signedQuote(q);
        vm.expectEmit();
        emit ILeaseEscrow.LeaseOpened(
            expected, consumer, provider, address(usdc), 340_000, PRICE, 2, START + 3900, q.specHash, quoteHash
        );
        vm.prank(consumer);
        bytes32 id = escrow.open(q, signature, session, 340_000);
        ILeaseEscrow.Lease memory l = escrow.lease(id);

        yes("id", id == expected && id == escrow.leaseIdOf(consumer, q.leaseRef));
        yes("people", l.consumer == consumer && l.signer == session && l.provider == provider && l.payee == payee);
        yes("referrer", l.referrer == referrer && l.referrerBps == 2500);
        yes("token", l.token == address(usdc) && l.feeBps == 200);
        yes("terms", l.gpus == 2 && l.pricePerGpuHour == PRICE && l.maxSeconds == 3600);
        yes("times", l.openedAt == START && l.endsAt == START + 300 + 3600 && l.closingAt == 0);
        yes("money", l.deposit == 340_000 && l.claimed == 0 && l.servedSeconds == 0 && l.refunded == 0);
        yes("open", l.closeReason == ILeaseEscrow.CloseReason.Open);
        yes("quote", l.quoteHash == quoteHash);
        same("pulled", had - usdc.balanceOf(consumer), 340_000);
        same("held", escrow.totals(address(usdc)).held, 340_000);
        same("no sponsor", escrow.sponsorships(id), 0);
        bytes32[] memory ids = new bytes32[](2);
        ids[1] = id;
        ILeaseEscrow.Lease[] memory all = escrow.leases(ids);
        yes("all at once", all[0].openedAt == 0 && keccak256(abi.encode(all[1])) == keccak256(abi.encode(l)));
        checkBooks(address(usdc));
    }

    function test_open_withoutReferrerOrItsShare_keepsNeither() public {
        ILeaseEscrow.Quote memory q = newQuote();
        q.referrerBps = 2500;
        ILeaseEscrow.Lease memory l = escrow.lease(open(q, 340_000));
        yes("nobody", l.referrer == address(0) && l.referrerBps == 0);
        q = newQuote();
        q.referrer = referrer;
        l = escrow.lease(open(q, 340_000));
        yes("no share", l.referrer == address(0) && l.referrerBps == 0);
    }

    function test_open_secondForSameRef_reverts_alsoAfterClose() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 340_000);
        refused(q, abi.encodeWithSelector(ILeaseEscrow.LeaseExists.selector, id));
        // Another quote for the same attempt does not help either.
        q.pricePerGpuHour += 1;
        q.nonce += 1_000_000;
        refused(q, abi.encodeWithSelector(ILeaseEscrow.LeaseExists.selector, id));
        pass(10);
        close(id, 5);
        refused(q, abi.encodeWithSelector(ILeaseEscrow.LeaseExists.selector, id));
    }

    function test_open_sameRefOfAnotherConsumer_isAnotherLease() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 first = open(q, 340_000);
        fund(usdc, stranger, 1e12);
        q.consumer = stranger;
        yes("ids differ", open(q, 340_000) != first);
    }

    function test_open_byAnother_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        vm.prank(stranger);
        expectNotAuthorized(stranger);
        escrow.open(q, signature, session, 340_000);
    }

    function test_open_otherNetwork_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        q.networkId = bytes32(uint256(1));
        refused(q, abi.encodeWithSelector(ILeaseEscrow.WrongNetwork.selector, q.networkId));
    }

    function test_open_atExpiry_reverts_oneSecondBefore_opens() public {
        ILeaseEscrow.Quote memory q = newQuote();
        vm.warp(q.expiresAt);
        refused(q, abi.encodeWithSelector(ILeaseEscrow.QuoteExpired.selector, uint256(q.expiresAt)));
        vm.warp(q.expiresAt - 1);
        open(q, 340_000);
    }

    function test_open_senselessTerms_revert() public {
        bytes memory why = abi.encodeWithSelector(ILeaseEscrow.InvalidTerms.selector);
        ILeaseEscrow.Quote memory q = newQuote();
        q.payee = address(0);
        refused(q, why);
        q = newQuote();
        q.gpus = 0;
        refused(q, why);
        q = newQuote();
        q.minSeconds = q.maxSeconds + 1;
        refused(q, why);
        q = newQuote();
        (q.minSeconds, q.maxSeconds) = (0, 0);
        refused(q, why);
        q = newQuote();
        q.pricePerGpuHour = uint128(type(uint96).max) + 1;
        (q.minSeconds, q.maxSeconds, q.gpus) = (0, 1, 1);
        refused(q, why);
        q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 5001);
        refused(q, why);

        q = newQuote();
        bytes memory signature = signedQuote(q);
        vm.prank(consumer);
        expect(why);
        escrow.open(q, signature, address(0), 340_000);

        // More than fits, though the term would cost it.
        (q.pricePerGpuHour, q.gpus) = (type(uint96).max, 2);
        signature = signedQuote(q);
        fund(usdc, consumer, 1e30);
        vm.prank(consumer);
        expect(why);
        escrow.open(q, signature, session, uint128(type(uint96).max) + 1);
    }

    function test_open_largestTerms_open() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.referrer, q.referrerBps) = (referrer, 5000);
        (q.pricePerGpuHour, q.gpus) = (type(uint96).max, type(uint32).max);
        (q.minSeconds, q.maxSeconds, q.startTimeoutSeconds) = (0, type(uint32).max, type(uint32).max);
        fund(usdc, consumer, 1e30);
        bytes32 id = open(q, type(uint96).max);
        pass(uint256(type(uint32).max) * 2);
        settle(id, type(uint32).max);
        same("all", escrow.lease(id).claimed, type(uint96).max);
        close(id, 0);
        checkBooks(address(usdc));
    }

    function test_open_oneSecond_isATerm() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (q.minSeconds, q.maxSeconds) = (1, 1);
        open(q, uint128(priceOf(q, 1)));
    }

    function test_open_tokenNotAllowed_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        vm.prank(owner);
        escrow.setToken(address(usdc), false, 200);
        refused(q, abi.encodeWithSelector(ILeaseEscrow.TokenNotAllowed.selector, address(usdc)));
    }

    function test_open_depositOutOfRange_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        uint256 min = priceOf(q, 60);
        uint256 max = priceOf(q, 3600);
        bytes memory signature = signedQuote(q);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, min - 1, min, max));
        escrow.open(q, signature, session, uint128(min - 1));
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, max + 1, min, max));
        escrow.open(q, signature, session, uint128(max + 1));
        open(q, uint128(min));
        open(newQuote(), uint128(max));
    }

    function test_open_notSignedByProvider_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signed(STRANGER_KEY, escrow.hashQuote(q));
        vm.prank(consumer);
        expectBadSignature(provider);
        escrow.open(q, signature, session, 340_000);
        // Nobody is no provider: what recovers nobody is no signature of it.
        q.provider = address(0);
        vm.prank(consumer);
        expectBadSignature(address(0));
        escrow.open(q, "", session, 340_000);
        vm.prank(consumer);
        expectBadSignature(address(0));
        escrow.open(q, new bytes(65), session, 340_000);
    }

    /// @dev I8: a signature for anything else moves nothing. Each field of the quote that is not refused for itself.
    function test_open_anyChangeAfterSigning_reverts(uint256 which, uint32 by) public {
        vm.assume(by != 0);
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        address expected = q.provider;
        which %= 15;
        if (which == 0) q.payee = address(uint160(q.payee) ^ (uint160(by) << 64));
        if (which == 1) q.leaseRef = bytes32(uint256(q.leaseRef) ^ by);
        if (which == 2) q.pricePerGpuHour ^= by % 1000 + 1;
        if (which == 3) q.startTimeoutSeconds ^= by;
        if (which == 4) q.graceSeconds ^= by;
        if (which == 5) q.capacityType ^= uint8(by % 255 + 1);
        if (which == 6) q.specHash = bytes32(uint256(q.specHash) ^ by);
        if (which == 7) q.saltCommit = bytes32(uint256(q.saltCommit) ^ by);
        if (which == 8) q.referrer = address(uint160(q.referrer) ^ by);
        if (which == 9) q.expiresAt += by;
        if (which == 10) q.nonce ^= by;
        if (which == 11) q.gpus = by % 1000 + 3;
        if (which == 12) q.maxSeconds = uint32(3601 + by % 100_000);
        if (which == 13) q.minSeconds = by % 60;
        if (which == 14) q.referrerBps = uint16(by % 5000 + 1);
        uint128 deposit = uint128(priceOf(q, 600));
        vm.prank(consumer);
        expectBadSignature(expected);
        escrow.open(q, signature, session, deposit);

        // Who serves, who pays, in what: those three are checked beside the signature.
        q = newQuote();
        signature = signedQuote(q);
        q.provider = stranger;
        vm.prank(consumer);
        expectBadSignature(stranger);
        escrow.open(q, signature, session, 340_000);
        q.provider = provider;
        q.token = address(gpu);
        vm.prank(consumer);
        expectBadSignature(provider);
        escrow.open(q, signature, session, 340_000);
        q.token = address(usdc);
        q.consumer = stranger;
        vm.prank(stranger);
        expectBadSignature(provider);
        escrow.open(q, signature, session, 340_000);
    }

    function test_open_signatureForOtherContractOrChain_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        Escrow other = Escrow(create(escrowCode(NETWORK, owner, treasury, WINDOW)));
        bytes memory signature = signed(PROVIDER_KEY, other.hashQuote(q));
        vm.prank(consumer);
        expectBadSignature(provider);
        escrow.open(q, signature, session, 340_000);

        signature = signedQuote(q);
        vm.chainId(4242);
        vm.prank(consumer);
        expectBadSignature(provider);
        escrow.open(q, signature, session, 340_000);
    }

    /// @dev I8: a signature has one spelling. The other value of s, the short form, and bytes too many are refused.
    function test_open_otherSpellingsOfTheSignature_revert() public {
        ILeaseEscrow.Quote memory q = newQuote();
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(PROVIDER_KEY, escrow.hashQuote(q));
        bytes32 highS = bytes32(0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141 - uint256(s));
        bytes[3] memory spellings = [
            abi.encodePacked(r, highS, v == 27 ? uint8(28) : uint8(27)),
            abi.encodePacked(r, bytes32(uint256(s) | (v == 28 ? 1 << 255 : 0))),
            abi.encodePacked(r, s, v, uint8(0))
        ];
        for (uint256 i = 0; i < 3; ++i) {
            vm.prank(consumer);
            expectBadSignature(provider);
            escrow.open(q, spellings[i], session, 340_000);
        }
    }

    function test_open_providerMayBeAContract() public {
        Wallet1271 wallet = new Wallet1271();
        ILeaseEscrow.Quote memory q = newQuote();
        q.provider = address(wallet);
        vm.prank(consumer);
        expectBadSignature(address(wallet));
        escrow.open(q, "", session, 340_000);
        wallet.accept(escrow.hashQuote(q));
        vm.prank(consumer);
        escrow.open(q, "", session, 340_000);
    }

    /// @dev EIP-7702 gives an account code and leaves it its key.
    function test_open_providerKeyWithCode_staysAKey() public {
        ILeaseEscrow.Quote memory q = newQuote();
        vm.etch(provider, hex"60006000fd");
        bytes32 id = open(q, 340_000);
        (ILeaseEscrow.Release memory r, bytes memory signature) = release(id, 0);
        vm.prank(consumer);
        escrow.closeWithRelease(r, signature);
        q = newQuote();
        signature = signed(STRANGER_KEY, escrow.hashQuote(q));
        vm.prank(consumer);
        expectBadSignature(provider);
        escrow.open(q, signature, session, 340_000);
    }

    /// @dev A wallet with ERC-1271 is a caller like any other: it opens, tops up, closes and withdraws by itself.
    function test_open_consumerMayBeAContract() public {
        Wallet1271 wallet = new Wallet1271();
        fund(usdc, address(wallet), 1e12);
        ILeaseEscrow.Quote memory q = newQuote();
        q.consumer = address(wallet);
        bytes memory signature = signedQuote(q);
        wallet.run(address(escrow), abi.encodeCall(ILeaseEscrow.open, (q, signature, session, 340_000)));
        bytes32 id = escrow.leaseIdOf(address(wallet), q.leaseRef);
        wallet.run(address(escrow), abi.encodeCall(ILeaseEscrow.topUp, (id, 1000)));
        pass(100);
        settle(id, 50);
        wallet.run(address(escrow), abi.encodeCall(ILeaseEscrow.requestClose, (id)));
        ILeaseEscrow.Release memory r;
        (r, signature) = release(id, 60);
        wallet.run(address(escrow), abi.encodeCall(ILeaseEscrow.closeWithRelease, (r, signature)));
        uint256 back = 341_000 - priceOf(q, 60);
        same("credit", credit(address(wallet)), back);
        wallet.run(address(escrow), abi.encodeCall(ILeaseEscrow.withdraw, (address(usdc), address(wallet))));
        same("all back", usdc.balanceOf(address(wallet)), 1e12 - 341_000 + back);
    }

    function test_open_taxedToken_reverts() public {
        TaxedToken tax = new TaxedToken();
        fund(Token(address(tax)), consumer, 1e12);
        allow(tax, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(tax);
        bytes memory signature = signedQuote(q);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.WrongAmountReceived.selector, 340_000, 306_000));
        escrow.open(q, signature, session, 340_000);
    }

    function test_open_tokenThatAnswersFalse_reverts() public {
        FalseToken token = new FalseToken();
        fund(Token(address(token)), consumer, 1e12);
        allow(token, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        refused(q, abi.encodeWithSignature("SafeERC20FailedOperation(address)", address(token)));
    }

    function test_open_freeLease_needsNoMoney() public {
        ILeaseEscrow.Quote memory q = newQuote();
        q.pricePerGpuHour = 0;
        bytes32 id = open(q, 0);
        pass(100);
        close(id, 50);
        same("seconds", escrow.lease(id).servedSeconds, 50);
        checkBooks(address(usdc));
    }

    function test_open_paused_reverts_untilResumed() public {
        ILeaseEscrow.Quote memory q = newQuote();
        vm.expectEmit();
        emit ILeaseEscrow.OpensPaused(true);
        vm.prank(owner);
        escrow.setOpensPaused(true);
        refused(q, abi.encodeWithSelector(ILeaseEscrow.OpensArePaused.selector));
        vm.prank(owner);
        escrow.setOpensPaused(false);
        open(q, 340_000);
    }

    // cancelQuote

    function test_cancelQuote_makesItWorthless() public {
        ILeaseEscrow.Quote memory q = newQuote();
        vm.prank(stranger);
        escrow.cancelQuote(q.nonce);
        yes("only one's own", !escrow.quoteCancelled(provider, q.nonce));
        vm.expectEmit();
        emit ILeaseEscrow.QuoteCancelled(provider, q.nonce);
        vm.prank(provider);
        escrow.cancelQuote(q.nonce);
        yes("cancelled", escrow.quoteCancelled(provider, q.nonce) && !escrow.quoteCancelled(provider, q.nonce + 1));
        refused(q, abi.encodeWithSelector(ILeaseEscrow.QuoteIsCancelled.selector, provider, q.nonce));
    }

    function test_cancelQuote_touchesNoOtherNonce(uint256 nonce, uint256 other) public {
        vm.assume(nonce != other);
        vm.prank(provider);
        escrow.cancelQuote(nonce);
        yes("it", escrow.quoteCancelled(provider, nonce));
        yes("no other", !escrow.quoteCancelled(provider, other));
        yes(
            "not its neighbours",
            !escrow.quoteCancelled(provider, nonce ^ 1) && !escrow.quoteCancelled(provider, nonce ^ 256)
        );
        vm.prank(provider);
        escrow.cancelQuote(other);
        yes("both", escrow.quoteCancelled(provider, nonce) && escrow.quoteCancelled(provider, other));
    }

    function test_cancelQuote_touchesNoOpenLease() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 340_000);
        vm.prank(provider);
        escrow.cancelQuote(q.nonce);
        pass(10);
        settle(id, 10);
        same("seconds", escrow.lease(id).servedSeconds, 10);
    }

    // openWithPermit

    function openWithPermit(ILeaseEscrow.Quote memory q, ILeaseEscrow.Permit memory p, bytes memory why)
        private
        returns (bytes32)
    {
        bytes memory signature = signedQuote(q);
        vm.prank(consumer);
        if (why.length != 0) expect(why);
        return escrow.openWithPermit(q, signature, session, 340_000, p);
    }

    function noAllowance() private {
        vm.prank(consumer);
        usdc.approve(address(escrow), 0);
    }

    function test_openWithPermit_needsNoApprove() public {
        noAllowance();
        bytes32 id = openWithPermit(newQuote(), permitOf(CONSUMER_KEY, usdc, address(escrow), 340_000), "");
        same("deposit", escrow.lease(id).deposit, 340_000);
        same("allowance used up", usdc.allowance(consumer, address(escrow)), 0);
        checkBooks(address(usdc));
    }

    function test_openWithPermit_playedBefore_opensAllTheSame() public {
        noAllowance();
        ILeaseEscrow.Permit memory p = permitOf(CONSUMER_KEY, usdc, address(escrow), 340_000);
        usdc.permit(consumer, address(escrow), p.value, p.deadline, p.v, p.r, p.s);
        openWithPermit(newQuote(), p, "");
    }

    function test_openWithPermit_worthlessPermit_withoutAllowance_reverts() public {
        noAllowance();
        ILeaseEscrow.Permit memory p = permitOf(CONSUMER_KEY, usdc, address(escrow), 340_000);
        p.value += 1;
        bytes memory why =
            abi.encodeWithSignature("ERC20InsufficientAllowance(address,uint256,uint256)", address(escrow), 0, 340_000);
        openWithPermit(newQuote(), p, why);
    }

    function test_openWithPermit_tokenNotAllowed_isNotCalled() public {
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(0xBEEF);
        bytes memory why = abi.encodeWithSelector(ILeaseEscrow.TokenNotAllowed.selector, q.token);
        openWithPermit(q, permitOf(CONSUMER_KEY, usdc, address(escrow), 1), why);
    }

    function test_openWithPermit_byAnother_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        ILeaseEscrow.Permit memory p = permitOf(CONSUMER_KEY, usdc, address(escrow), 340_000);
        bytes memory signature = signedQuote(q);
        vm.prank(stranger);
        expectNotAuthorized(stranger);
        escrow.openWithPermit(q, signature, session, 340_000, p);
    }

    // openWithAuthorization

    function relayed(
        ILeaseEscrow.Quote memory q,
        address signer,
        uint128 deposit,
        ILeaseEscrow.Authorization memory a,
        bytes memory why
    ) private returns (bytes32 id) {
        bytes memory signature = signedQuote(q);
        vm.prank(stranger);
        if (why.length != 0) expect(why);
        return escrow.openWithAuthorization(q, signature, signer, deposit, a);
    }

    function test_openWithAuthorization_byAnyone_needsNoTransactionOfTheConsumer() public {
        noAllowance();
        uint256 had = usdc.balanceOf(consumer);
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 nonce = escrow.authorizationNonce(escrow.hashQuote(q), session);
        yes("nonce", nonce == keccak256(abi.encode(escrow.hashQuote(q), session)));
        bytes32 id = relayed(q, session, 340_000, authorization(q, session, 340_000), "");
        ILeaseEscrow.Lease memory l = escrow.lease(id);
        yes("the consumer's", l.consumer == consumer && l.signer == session && l.deposit == 340_000);
        same("paid by the consumer", had - usdc.balanceOf(consumer), 340_000);
        yes("used", usdc.authorizationState(consumer, nonce));
        pass(100);
        close(id, 30);
        same("refund", credit(consumer), 340_000 - priceOf(q, 30));
        checkBooks(address(usdc));
    }

    /// @dev Who signs it agrees to one quote, one session key, one deposit; nothing else can be made of it.
    function test_openWithAuthorization_forAnythingElse_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        bytes memory why = abi.encodeWithSignature("ERC3009InvalidSignature()");
        relayed(q, stranger, 340_000, a, why);
        relayed(q, session, 340_001, a, why);
        ILeaseEscrow.Quote memory other = newQuote();
        relayed(other, session, 340_000, a, why);
        q.pricePerGpuHour -= 1;
        relayed(q, session, 340_000, a, why);
        q.pricePerGpuHour += 1;

        a.validBefore -= 1;
        relayed(q, session, 340_000, a, why);
        a.validBefore += 1;
        a.validAfter += 1;
        relayed(q, session, 340_000, a, why);
        a.validAfter -= 1;
        a.v ^= 1;
        relayed(q, session, 340_000, a, abi.encodeWithSignature("ECDSAInvalidSignature()"));
        a.v ^= 1;
        // Another's money for the consumer's lease.
        bytes32 nonce = escrow.authorizationNonce(escrow.hashQuote(q), session);
        fund(usdc, stranger, 1e12);
        relayed(q, session, 340_000, receiveAuthorization(STRANGER_KEY, usdc, address(escrow), 340_000, nonce), why);
        relayed(q, session, 340_000, a, "");
    }

    /// @dev The token lets only the receiver play it, so that it cannot be taken out of the opening and spent.
    function test_openWithAuthorization_cannotBePlayedByItself() public {
        ILeaseEscrow.Quote memory q = newQuote();
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        bytes32 nonce = escrow.authorizationNonce(escrow.hashQuote(q), session);
        vm.prank(stranger);
        expect(abi.encodeWithSignature("ERC20InvalidReceiver(address)", address(escrow)));
        usdc.receiveWithAuthorization(
            consumer, address(escrow), 340_000, a.validAfter, a.validBefore, nonce, a.v, a.r, a.s
        );
        relayed(q, session, 340_000, a, "");
    }

    function test_openWithAuthorization_opensOnce() public {
        ILeaseEscrow.Quote memory q = newQuote();
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        bytes32 id = relayed(q, session, 340_000, a, "");
        relayed(q, session, 340_000, a, abi.encodeWithSelector(ILeaseEscrow.LeaseExists.selector, id));
        // Opened by the consumer itself in the meantime: the authorization takes nothing more.
        q = newQuote();
        a = authorization(q, session, 340_000);
        id = open(q, 340_000);
        relayed(q, session, 340_000, a, abi.encodeWithSelector(ILeaseEscrow.LeaseExists.selector, id));
    }

    function test_openWithAuthorization_cancelledAtTheToken_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        bytes32 nonce = escrow.authorizationNonce(escrow.hashQuote(q), session);
        bytes32 structHash =
            keccak256(abi.encode(keccak256("CancelAuthorization(address authorizer,bytes32 nonce)"), consumer, nonce));
        (uint8 v, bytes32 r, bytes32 s) =
            vm.sign(CONSUMER_KEY, keccak256(abi.encodePacked("\x19\x01", usdc.DOMAIN_SEPARATOR(), structHash)));
        usdc.cancelAuthorization(consumer, nonce, v, r, s);
        bytes memory why = abi.encodeWithSignature("ERC3009UsedAuthorization(address,bytes32)", consumer, nonce);
        relayed(q, session, 340_000, a, why);
    }

    function test_openWithAuthorization_isAnOpenInAllElse() public {
        ILeaseEscrow.Quote memory q = newQuote();
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        bytes memory signature = signed(STRANGER_KEY, escrow.hashQuote(q));
        expectBadSignature(provider);
        escrow.openWithAuthorization(q, signature, session, 340_000, a);
        vm.prank(owner);
        escrow.setOpensPaused(true);
        relayed(q, session, 340_000, a, abi.encodeWithSelector(ILeaseEscrow.OpensArePaused.selector));
        vm.prank(owner);
        escrow.setOpensPaused(false);
        vm.warp(q.expiresAt);
        relayed(
            q, session, 340_000, a, abi.encodeWithSelector(ILeaseEscrow.QuoteExpired.selector, uint256(q.expiresAt))
        );
    }

    /// @dev A token that answers everything would "authorize" everything. It moves nothing, which is noticed; nothing at all
    /// would not be, and is refused.
    function test_openWithAuthorization_ofATokenThatKnowsNone_reverts() public {
        AnsweringToken token = new AnsweringToken();
        fund(Token(address(token)), consumer, 1e12);
        allow(token, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        ILeaseEscrow.Authorization memory a;
        relayed(q, stranger, 340_000, a, abi.encodeWithSelector(ILeaseEscrow.WrongAmountReceived.selector, 340_000, 0));
        q.minSeconds = 0;
        bytes memory why = abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, 0, 1, type(uint96).max);
        relayed(q, stranger, 0, a, why);
        // The network's own token has no such function.
        q = newQuote();
        q.token = address(gpu);
        bytes memory signature = signedQuote(q);
        vm.prank(stranger);
        (bool ok,) = address(escrow)
            .call(abi.encodeCall(ILeaseEscrow.openWithAuthorization, (q, signature, session, 340_000, a)));
        yes("refused", !ok);
    }
}
