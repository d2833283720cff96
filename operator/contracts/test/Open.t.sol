// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {LeaseEscrow} from "../src/LeaseEscrow.sol";
import {Base, same, vm, yes} from "./Base.sol";
import {ReenteringToken, TaxedToken, Wallet1271} from "./Doubles.sol";

/// @dev trees/open.tree, trees/openWithPermit.tree, trees/topUp.tree
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
        uint256 had = usdc.balanceOf(consumer);
        bytes32 id = open(q, 340_000);
        ILeaseEscrow.Lease memory l = escrow.lease(id);

        yes("id", id == keccak256(abi.encode(consumer, q.leaseRef)) && id == escrow.leaseIdOf(consumer, q.leaseRef));
        yes("people", l.consumer == consumer && l.signer == session && l.provider == provider && l.payee == payee);
        yes("referrer", l.referrer == referrer && l.referrerBps == 2500);
        yes("token", l.token == address(usdc) && l.feeBps == 200);
        yes("terms", l.gpus == 2 && l.pricePerGpuHour == PRICE && l.maxSeconds == 3600);
        yes("times", l.openedAt == START && l.endsAt == START + 300 + 3600 && l.closingAt == 0);
        yes("money", l.deposit == 340_000 && l.claimed == 0 && l.servedSeconds == 0 && l.refunded == 0);
        yes("open", l.closeReason == ILeaseEscrow.CloseReason.Open);
        yes("quote", l.quoteHash == escrow.hashQuote(q));
        same("pulled", had - usdc.balanceOf(consumer), 340_000);
        same("held", escrow.totals(address(usdc)).held, 340_000);
        checkBooks(address(usdc));
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
        usdc.mint(stranger, 1e12);
        vm.prank(stranger);
        usdc.approve(address(escrow), type(uint256).max);
        q.consumer = stranger;
        yes("ids differ", open(q, 340_000) != first);
    }

    function test_open_byAnother_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        vm.prank(stranger);
        expect(abi.encodeWithSelector(ILeaseEscrow.NotAuthorized.selector, stranger));
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

    function test_open_cancelled_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        vm.prank(stranger);
        escrow.cancelQuote(q.nonce);
        yes("only one's own", !escrow.quoteCancelled(provider, q.nonce));
        vm.prank(provider);
        escrow.cancelQuote(q.nonce);
        yes("cancelled", escrow.quoteCancelled(provider, q.nonce) && !escrow.quoteCancelled(provider, q.nonce + 1));
        refused(q, abi.encodeWithSelector(ILeaseEscrow.QuoteIsCancelled.selector, provider, q.nonce));
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
        refused(q, why);
        q = newQuote();
        q.referrerBps = 10_001;
        refused(q, why);

        q = newQuote();
        bytes memory signature = signedQuote(q);
        vm.prank(consumer);
        expect(why);
        escrow.open(q, signature, address(0), 340_000);
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
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, provider));
        escrow.open(q, signature, session, 340_000);
    }

    /// @dev I8: a signature for anything else moves nothing. Each field of the quote, the chain and the contract matter.
    function test_open_anyChangeAfterSigning_reverts(uint256 which, uint32 by) public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        vm.assume(by != 0);
        which %= 11;
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
        uint128 deposit = uint128(priceOf(q, 600));
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, provider));
        escrow.open(q, signature, session, deposit);
    }

    function test_open_signatureForOtherContractOrChain_reverts() public {
        ILeaseEscrow.Quote memory q = newQuote();
        LeaseEscrow other = new LeaseEscrow(NETWORK, owner, treasury, WINDOW);
        bytes memory signature = signed(PROVIDER_KEY, other.hashQuote(q));
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, provider));
        escrow.open(q, signature, session, 340_000);

        signature = signedQuote(q);
        vm.chainId(4242);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, provider));
        escrow.open(q, signature, session, 340_000);
    }

    function test_open_providerMayBeAContract() public {
        Wallet1271 wallet = new Wallet1271();
        ILeaseEscrow.Quote memory q = newQuote();
        q.provider = address(wallet);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.BadSignature.selector, address(wallet)));
        escrow.open(q, "", session, 340_000);
        wallet.accept(escrow.hashQuote(q));
        vm.prank(consumer);
        escrow.open(q, "", session, 340_000);
    }

    function test_open_taxedToken_reverts() public {
        TaxedToken tax = new TaxedToken();
        tax.mint(consumer, 1e12);
        vm.prank(consumer);
        tax.approve(address(escrow), type(uint256).max);
        vm.prank(owner);
        escrow.setToken(address(tax), true, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(tax);
        bytes memory signature = signedQuote(q);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.WrongAmountReceived.selector, 340_000, 306_000));
        escrow.open(q, signature, session, 340_000);
    }

    function test_open_tokenThatCallsBack_isKeptOut() public {
        ReenteringToken token = new ReenteringToken();
        token.mint(consumer, 1e12);
        vm.prank(consumer);
        token.approve(address(escrow), type(uint256).max);
        vm.prank(owner);
        escrow.setToken(address(token), true, 200);
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(token);
        token.arm(escrow, abi.encodeCall(ILeaseEscrow.withdraw, (address(token), address(token))));
        open(q, 340_000);
        yes("refused", bytes4(token.answer()) == bytes4(keccak256("ReentrancyGuardReentrantCall()")));
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

    function test_open_paused_reverts() public {
        vm.prank(owner);
        escrow.setOpensPaused(true);
        refused(newQuote(), abi.encodeWithSelector(ILeaseEscrow.OpensArePaused.selector));
    }

    // openWithPermit

    function permitOf(uint256 value) private returns (ILeaseEscrow.Permit memory p) {
        bytes32 typehash =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 digest = keccak256(
            abi.encodePacked(
                "\x19\x01",
                usdc.DOMAIN_SEPARATOR(),
                keccak256(
                    abi.encode(typehash, consumer, address(escrow), value, usdc.nonces(consumer), block.timestamp + 60)
                )
            )
        );
        (p.value, p.deadline) = (value, block.timestamp + 60);
        (p.v, p.r, p.s) = vm.sign(CONSUMER_KEY, digest);
    }

    function test_openWithPermit_needsNoApprove() public {
        vm.prank(consumer);
        usdc.approve(address(escrow), 0);
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        ILeaseEscrow.Permit memory p = permitOf(340_000);
        vm.prank(consumer);
        bytes32 id = escrow.openWithPermit(q, signature, session, 340_000, p);
        same("deposit", escrow.lease(id).deposit, 340_000);
        same("allowance used up", usdc.allowance(consumer, address(escrow)), 0);
    }

    function test_openWithPermit_playedBefore_opensAllTheSame() public {
        vm.prank(consumer);
        usdc.approve(address(escrow), 0);
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        ILeaseEscrow.Permit memory p = permitOf(340_000);
        usdc.permit(consumer, address(escrow), p.value, p.deadline, p.v, p.r, p.s);
        vm.prank(consumer);
        escrow.openWithPermit(q, signature, session, 340_000, p);
    }

    function test_openWithPermit_worthlessPermit_withoutAllowance_reverts() public {
        vm.prank(consumer);
        usdc.approve(address(escrow), 0);
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        ILeaseEscrow.Permit memory p = permitOf(340_000);
        p.value += 1;
        vm.prank(consumer);
        expect(
            abi.encodeWithSignature(
                "ERC20InsufficientAllowance(address,uint256,uint256)", address(escrow), 0, 340_000
            )
        );
        escrow.openWithPermit(q, signature, session, 340_000, p);
    }

    function test_openWithPermit_tokenNotAllowed_isNotCalled() public {
        ILeaseEscrow.Quote memory q = newQuote();
        q.token = address(0xBEEF);
        bytes memory signature = signedQuote(q);
        ILeaseEscrow.Permit memory p = permitOf(1);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.TokenNotAllowed.selector, q.token));
        escrow.openWithPermit(q, signature, session, 340_000, p);
    }

    // topUp

    function test_topUp_byAnyone_upToTheMaximum() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 340_000);
        usdc.mint(stranger, 1e12);
        vm.prank(stranger);
        usdc.approve(address(escrow), type(uint256).max);
        vm.prank(stranger);
        escrow.topUp(id, 340_000);
        same("deposit", escrow.lease(id).deposit, 680_000);
        vm.prank(stranger);
        expect(abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, 680_001, 0, 680_000));
        escrow.topUp(id, 1);
        vm.prank(stranger);
        expect(abi.encodeWithSelector(ILeaseEscrow.DepositOutOfRange.selector, 680_000, 0, 680_000));
        escrow.topUp(id, 0);
        checkBooks(address(usdc));
    }

    function test_topUp_unspent_goesToTheConsumer() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, 340_000);
        usdc.mint(stranger, 340_000);
        vm.prank(stranger);
        usdc.approve(address(escrow), type(uint256).max);
        vm.prank(stranger);
        escrow.topUp(id, 340_000);
        pass(20);
        close(id, 18);
        same("consumer", escrow.credits(address(usdc), consumer), 680_000 - priceOf(q, 18));
        same("stranger", escrow.credits(address(usdc), stranger), 0);
    }

    /// @dev I9: partial funding never burns a voucher.
    function test_topUp_paysSecondsThatWereCountedButNotCovered() public {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes32 id = open(q, uint128(priceOf(q, 60)));
        pass(200);
        settle(id, 150);
        same("covered", escrow.lease(id).claimed, priceOf(q, 60));
        same("counted", escrow.lease(id).servedSeconds, 150);
        vm.prank(consumer);
        escrow.topUp(id, 100_000);
        same("paid at once", escrow.lease(id).claimed, priceOf(q, 150));
        checkBooks(address(usdc));
    }

    function test_topUp_unknownOrClosed_reverts() public {
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseNotFound.selector, bytes32(0)));
        escrow.topUp(bytes32(0), 1);
        bytes32 id = openFull();
        close(id, 0);
        vm.prank(consumer);
        expect(abi.encodeWithSelector(ILeaseEscrow.LeaseIsClosed.selector, id));
        escrow.topUp(id, 1);
    }
}
