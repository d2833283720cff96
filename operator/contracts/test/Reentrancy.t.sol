// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ILeaseEscrow} from "../src/ILeaseEscrow.sol";
import {Base, Token, permitOf, vm, yes} from "./Base.sol";
import {ReenteringToken} from "./Doubles.sol";

/// @dev trees/reentrancy.tree: a token that calls back while it moves, through every door that moves money, into every door.
contract ReentrancyTest is Base {
    ReenteringToken token;
    bytes32 opened;
    bytes32 sponsored;

    function makeUsdc() internal override returns (Token) {
        token = new ReenteringToken();
        return Token(address(token));
    }

    /// @dev Every function with a guard, in calls that are good but for who makes them.
    function doors() private returns (bytes[] memory calls) {
        ILeaseEscrow.Quote memory q = newQuote();
        bytes memory signature = signedQuote(q);
        ILeaseEscrow.Permit memory none;
        calls = new bytes[](13);
        calls[0] = abi.encodeCall(ILeaseEscrow.open, (q, signature, session, 340_000));
        calls[1] = abi.encodeCall(ILeaseEscrow.openWithPermit, (q, signature, session, 340_000, none));
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        calls[2] = abi.encodeCall(ILeaseEscrow.openWithAuthorization, (q, signature, session, 340_000, a));
        calls[3] = abi.encodeCall(ILeaseEscrow.topUp, (opened, 1));
        (ILeaseEscrow.Voucher memory v, bytes memory s) = voucher(opened, 5, true);
        calls[4] = abi.encodeCall(ILeaseEscrow.settle, (v, s));
        ILeaseEscrow.SignedVoucher[] memory items = new ILeaseEscrow.SignedVoucher[](1);
        items[0] = ILeaseEscrow.SignedVoucher(v, s);
        calls[5] = abi.encodeCall(ILeaseEscrow.settleMany, (items));
        calls[6] = abi.encodeCall(ILeaseEscrow.close, (v, s));
        ILeaseEscrow.Release memory r;
        (r, s) = release(opened, 5);
        calls[7] = abi.encodeCall(ILeaseEscrow.closeWithRelease, (r, s));
        calls[8] = abi.encodeCall(ILeaseEscrow.requestClose, (opened));
        calls[9] = abi.encodeCall(ILeaseEscrow.providerClose, (opened, ILeaseEscrow.CloseReason.ProviderOther));
        calls[10] = abi.encodeCall(ILeaseEscrow.finalize, (opened));
        calls[11] = abi.encodeCall(ILeaseEscrow.refundSponsor, (sponsored, 0));
        calls[12] = abi.encodeCall(ILeaseEscrow.withdraw, (address(token), stranger));
    }

    function allRefused(string memory way) private {
        bytes4 guard = bytes4(keccak256("ReentrancyGuardReentrantCall()"));
        yes(way, token.count() >= 13);
        for (uint256 i = 0; i < token.count(); ++i) {
            yes(way, !token.done(i) && bytes4(token.answers(i)) == guard);
        }
        token.disarm();
        checkBooks(address(token));
    }

    function test_reentrancy_everyWayIn_duringEveryWayOut() public {
        fund(Token(address(token)), stranger, 1e12);
        opened = open(newQuote(), 340_000);
        sponsored = open(newQuote(), 340_000);
        vm.prank(stranger);
        escrow.topUp(sponsored, 1000);
        pass(100);
        close(sponsored, 50);
        bytes[] memory calls = doors();

        ILeaseEscrow.Quote memory q = newQuote();
        token.arm(address(escrow), calls);
        open(q, 340_000);
        allRefused("open");

        q = newQuote();
        bytes memory signature = signedQuote(q);
        ILeaseEscrow.Permit memory p = permitOf(CONSUMER_KEY, usdc, address(escrow), 340_000);
        token.arm(address(escrow), calls);
        vm.prank(consumer);
        escrow.openWithPermit(q, signature, session, 340_000, p);
        allRefused("openWithPermit");

        q = newQuote();
        signature = signedQuote(q);
        ILeaseEscrow.Authorization memory a = authorization(q, session, 340_000);
        token.arm(address(escrow), calls);
        escrow.openWithAuthorization(q, signature, session, 340_000, a);
        allRefused("openWithAuthorization");
        approve(usdc, consumer);

        token.arm(address(escrow), calls);
        vm.prank(consumer);
        escrow.topUp(opened, 1);
        allRefused("topUp");

        token.arm(address(escrow), calls);
        vm.prank(payee);
        escrow.withdraw(address(token), payee);
        allRefused("withdraw");

        // Nothing was left shut.
        settle(opened, 10);
        escrow.refundSponsor(sponsored, 0);
    }
}
