/* The store manager's B+ trees. */
#include "mi.h"
#include "store_layout.h"

static ULONG BTreeMost(B_TREE *Node) { return Node->Leaf ? ARRAYSIZE(Node->Leaves) : ARRAYSIZE(Node->Nodes); }

static B_TREE *BTreeNew(UCHAR Level) {
    B_TREE *Node = ExAllocatePool(PAGE_SIZE, 'tBms');
    if (Node) Node->Level = Level, Node->Leaf = Level == 1;
    return Node;
}

/* How many keys of a node are not above Key. */
static ULONG BTreePlace(B_TREE *Node, ULONG Key) {
    ULONG Low = 0, High = Node->Elements;
    while (Low < High) {
        ULONG Middle = (Low + High) / 2;
        if ((Node->Leaf ? Node->Leaves[Middle].Key : Node->Nodes[Middle].Key) <= Key)
            Low = Middle + 1;
        else
            High = Middle;
    }
    return Low;
}

static B_TREE *BTreeChild(B_TREE *Node, ULONG Place) { return Place ? Node->Nodes[Place - 1].Child : Node->LeftChild; }

static void BTreePutNode(B_TREE *Node, ULONG Place, ULONG Key, B_TREE *Child) {
    for (ULONG At = Node->Elements++; At > Place; At--) Node->Nodes[At] = Node->Nodes[At - 1];
    Node->Nodes[Place].Key = Key;
    Node->Nodes[Place].Child = Child;
}

/* The upper half of Parent's full child to a new node beside it. */
static BOOLEAN BTreeSplitChild(B_TREE *Parent, ULONG Place) {
    B_TREE *Left = BTreeChild(Parent, Place), *Right = BTreeNew(Left->Level);
    ULONG Half = Left->Elements / 2, Key;
    if (!Right) return FALSE;
    if (Left->Leaf) {
        Right->Elements = (USHORT)(Left->Elements - Half);
        memcpy(Right->Leaves, Left->Leaves + Half, Right->Elements * sizeof *Left->Leaves);
        Key = Right->Leaves[0].Key;
    } else {
        Key = Left->Nodes[Half].Key;
        Right->LeftChild = Left->Nodes[Half].Child;
        Right->Elements = (USHORT)(Left->Elements - Half - 1);
        memcpy(Right->Nodes, Left->Nodes + Half + 1, Right->Elements * sizeof *Left->Nodes);
    }
    Left->Elements = (USHORT)Half;
    BTreePutNode(Parent, Place, Key, Right);
    return TRUE;
}

BOOLEAN BTreeInsert(B_TREE **Root, ULONG Key, ULONG Value) {
    B_TREE *Node = *Root;
    ULONG Place;
    if (!Node && !(Node = *Root = BTreeNew(1))) return FALSE;
    if (Node->Elements == BTreeMost(Node)) {
        B_TREE *Top = BTreeNew((UCHAR)(Node->Level + 1));
        if (!Top) return FALSE;
        Top->LeftChild = Node;
        if (!BTreeSplitChild(Top, 0)) {
            ExFreePool(Top);
            return FALSE;
        }
        Node = *Root = Top;
    }
    while (!Node->Leaf) {
        B_TREE *Child = BTreeChild(Node, Place = BTreePlace(Node, Key));
        if (Child->Elements == BTreeMost(Child)) {
            if (!BTreeSplitChild(Node, Place)) return FALSE;
            Child = BTreeChild(Node, BTreePlace(Node, Key));
        }
        Node = Child;
    }
    Place = BTreePlace(Node, Key);
    if (Place && Node->Leaves[Place - 1].Key == Key) {
        Node->Leaves[Place - 1].Value = Value;
        return TRUE;
    }
    for (ULONG At = Node->Elements++; At > Place; At--) Node->Leaves[At] = Node->Leaves[At - 1];
    Node->Leaves[Place].Key = Key;
    Node->Leaves[Place].Value = Value;
    return TRUE;
}

static B_TREE *BTreeLeaf(B_TREE *Node, ULONG Key, ULONG *Place) {
    while (Node && !Node->Leaf) Node = BTreeChild(Node, BTreePlace(Node, Key));
    if (!Node || !(*Place = BTreePlace(Node, Key)) || Node->Leaves[--*Place].Key != Key) return NULL;
    return Node;
}

BOOLEAN BTreeSearch(B_TREE *Root, ULONG Key, ULONG *Value) {
    ULONG Place;
    B_TREE *Leaf = BTreeLeaf(Root, Key, &Place);
    if (Leaf) *Value = Leaf->Leaves[Place].Value;
    return Leaf != NULL;
}

void BTreeRemove(B_TREE *Root, ULONG Key) {
    ULONG Place;
    B_TREE *Leaf = BTreeLeaf(Root, Key, &Place);
    if (!Leaf) return;
    Leaf->Elements--;
    for (; Place < Leaf->Elements; Place++) Leaf->Leaves[Place] = Leaf->Leaves[Place + 1];
}
