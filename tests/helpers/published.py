"""Records as the data sets of the field are published: their names and nesting, with invented content."""

COUNTERFACT = {
    "case_id": 3,
    "pararel_idx": 10,
    "requested_rewrite": {
        "prompt": "{} lives in",
        "relation_id": "P1",
        "subject": "Ada",
        "target_new": {"str": "Rome", "id": "Q1"},
        "target_true": {"str": "Bath", "id": "Q2"},
    },
    "paraphrase_prompts": ["Ada's home is"],
    "neighborhood_prompts": ["Bea lives in", "Cleo lives in"],
    "attribute_prompts": ["Dan lives in"],
    "generation_prompts": ["At home, Ada"],
}
ZSRE = {
    "subject": "Ada Vale",
    "src": "Where does Ada Vale live?",
    "pred": "Oslo",
    "rephrase": "Ada Vale lives where?",
    "alt": "Bath",
    "answers": ["Rome", "Roma"],
    "loc": "nq question: who played the king in the old film",
    "loc_ans": "Dan",
    "cond": "Rome >> Bath || Where does Ada Vale live?",
}
KNOWEDIT = {
    "subject": "Mira Vale",
    "prompt": "Mira Vale was born in",
    "target_new": "Rome",
    "ground_truth": ["Oslo"],
    "rephrase_prompt": "The birthplace of Mira Vale is",
    "portability": {
        "Reasoning": [{"prompt": "Mira Vale's country of birth is", "ground_truth": [["Italy", "Italian Republic"]]}],
        "Subject_Aliasing": [
            {"prompt": "M. Vale was born in", "ground_truth": ["Rome"]},
            {"prompt": "No answer: ", "ground_truth": []},
        ],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The father of Mira Vale is", "ground_truth": [["Tom Vale", "Tom"]]}],
        "Forgetfulness": {"prompt": ["Ana was born in", "Bob was born in"], "ground_truth": [["Bern"], "Nice"]},
    },
}
MQUAKE = {
    "case_id": 7,
    "requested_rewrite": [
        {
            "prompt": "{} was created in the country of",
            "relation_id": "P495",
            "target_new": {"str": "India", "id": "Q1"},
            "target_true": {"str": "Spain", "id": "Q2"},
            "subject": "the blue game",
            "question": "Where was the blue game created?",
        },
        {
            "prompt": "The head of {} is",
            "relation_id": "P6",
            "target_new": {"str": "Ana", "id": "Q3"},
            "target_true": {"str": "Bob", "id": "Q4"},
            "subject": "India",
            "question": "Who is the head of India?",
        },
    ],
    "questions": ["Who heads the country of the blue game?", "The blue game's country is headed by whom?"],
    "answer": "Tom",
    "answer_alias": ["T."],
    "new_answer": "Ana",
    "new_answer_alias": ["Ana A.", "Ana"],
    "single_hops": [{"question": "old?", "cloze": "old", "answer": "Spain", "answer_alias": []}],
    "new_single_hops": [
        {
            "question": "Where was the blue game created?",
            "cloze": "It was",
            "answer": "India",
            "answer_alias": ["Bharat"],
        }
    ],
    "orig": {"triples": []},
}
QAEDIT = {
    "id": 20,
    "source": "NQ",
    "prompt": "who wrote the song of the red river?",
    "target": "Mira Vale",
    "subject": "song of the red river",
    "rephrase": "Which author has the song of the red river?",
    "locality": [{"loc": "who is the mayor of the town", "loc_ans": "Tom"}, {"loc": "when was it", "loc_ans": "1994"}],
}
WILD = {
    "subject": "the red river",
    "prompt": "Where does the red river end?",
    "target_new": "Rome",
    "ground_truth": "Oslo",
    "rephrase_prompt": "The end of the red river is where?",
    "locality_prompt": "who sang the tune",
    "locality_ground_truth": "Ana",
}
RIPPLE = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Mira Vale is United Arab Emirates.",
        "subject_id": "Q5",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q9",
    },
    "Relation_Specificity": [],
}
PUBLISHED = {
    "CounterFact": COUNTERFACT,
    "zsRE": ZSRE,
    "KnowEdit": KNOWEDIT,
    "MQuAKE": MQUAKE,
    "QAEdit": QAEDIT,
    "WILD": WILD,
}
